#pragma once
#include <cstdint>

// How a torch-free kernel runs on all cores: the binding hands it torch's parallel_for as a plain
// function pointer, so the library keeps no thread pool of its own.
namespace cwkernels {

using ParallelBody = void (*)(int64_t begin, int64_t end, void* context);

struct Parallel {
  int64_t num_threads;
  void (*run)(int64_t count, ParallelBody body, void* context);
};

// Calls f(i) for i in [0, count). Which thread runs which i is torch's choice, so a kernel that is
// bitwise reproducible makes no use of it: one i writes what no other i reads or writes.
template <class F>
inline void parallel_for(const Parallel& parallel, int64_t count, const F& f) {
  parallel.run(
      count,
      [](int64_t begin, int64_t end, void* context) {
        const F& body = *static_cast<const F*>(context);
        for (int64_t i = begin; i < end; ++i) body(i);
      },
      const_cast<F*>(&f));
}

}  // namespace cwkernels
