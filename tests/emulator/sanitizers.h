#pragma once
#include <cstddef>

// What the sanitizers must be told about fibers, memory and order. Each function is nothing without
// its sanitizer: CWK_ASAN and CWK_TSAN say what the kernels are compiled with; the emulator's own
// sources never are, so that it can move data between threads unseen.
#if CWK_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if CWK_TSAN
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace cwkernels::emulator {

// Order, for ThreadSanitizer: what happened before publish(key) happened before what follows
// observe(key).
inline void publish([[maybe_unused]] void* key) {
#if CWK_TSAN
  __tsan_release(key);
#endif
}
inline void observe([[maybe_unused]] void* key) {
#if CWK_TSAN
  __tsan_acquire(key);
#endif
}

// While one lives, memory that is allocated, freed or copied counts as new to every thread.
class Unseen {
 public:
#if CWK_TSAN
  Unseen() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unseen() { end(); }
  static void end() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  Unseen() {}
  static void end() {}
#endif
  Unseen(const Unseen&) = delete;
  Unseen& operator=(const Unseen&) = delete;
};

// A flow of control that ThreadSanitizer tells from others. A new one knows nothing of what was
// done before, or else all that the host did would be in order with a kernel that forgot to wait.
class Clock {
 public:
#if CWK_TSAN
  static void* of_the_running() { return __tsan_get_current_fiber(); }
  static void* fresh() {
    void* running = __tsan_get_current_fiber();
    switch_to(origin());
    void* clock = __tsan_create_fiber(0);
    switch_to(running);
    return clock;
  }
  static void switch_to(void* clock) {
    __tsan_switch_to_fiber(clock, __tsan_switch_to_fiber_no_sync);
  }
  static void destroy(void* clock) { __tsan_destroy_fiber(clock); }
  static void* origin() {
    static void* const first = __tsan_create_fiber(0);
    return first;
  }
#else
  static void* of_the_running() { return nullptr; }
  static void* fresh() { return nullptr; }
  static void switch_to(void*) {}
  static void destroy(void*) {}
  static void* origin() { return nullptr; }
#endif
};

}  // namespace cwkernels::emulator
