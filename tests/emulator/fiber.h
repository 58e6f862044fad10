#pragma once
#include <cstddef>
#ifndef __x86_64__
#include <ucontext.h>
#endif

// A flow of control with a stack of its own, as cheap to switch to as a call.
namespace cwkernels::emulator {

class Fiber {
 public:
  // The flow that runs already: the host's.
  Fiber();
  // `entry` runs at the first switch to it, and never returns.
  explicit Fiber(void (*entry)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Begins anew: what was on the stack is gone.
  void restart();
  // From `this`, which runs, to `next`. A `dying` one is not switched to again before its restart.
  void switch_to(Fiber& next, bool dying = false);

 private:
  void arrive();

  void (*entry_)() = nullptr;
#ifdef __x86_64__
  void* context_ = nullptr;  // the stack pointer where it stopped
#else
  ucontext_t context_;
#endif
  unsigned char* stack_ = nullptr;
  size_t stack_bytes_ = 0;
  void* clock_ = nullptr;       // ThreadSanitizer's
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  const void* bottom_ = nullptr;
  static Fiber* previous_;
  static Fiber* running_;
  static void begin();
};

}  // namespace cwkernels::emulator
