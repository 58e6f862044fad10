#pragma once
#include "portable.cuh"

namespace cwkernels {

// A type as an argument.
template <class T>
struct Of {
  using Type = T;
};

// f(Of<Stored>{}) for what the activations of a call are stored in.
template <class Params, class F>
auto with_stored(const Params& p, const F& f) {
  if (p.double_precision) return f(Of<double>{});
  return p.bf16_images ? f(Of<bf16>{}) : f(Of<float>{});
}

// Shares out `count` targets to the collector of their dtype, by add(collector, i) in order, and
// launches what each has collected; returns the first cudaError_t that is one. `targets` say
// whether they are of double_precision, and run() of a collector launches.
template <class Floats, class Doubles, class Target, class Add>
int launch_by_dtype(Floats floats, Doubles doubles, const Target* targets, int64_t count,
                    const Add& add) {
  for (int64_t i = 0; i < count; ++i) {
    if (targets[i].double_precision) {
      add(doubles, i);
    } else {
      add(floats, i);
    }
  }
  const int error = floats.run();
  return error != 0 ? error : doubles.run();
}

}  // namespace cwkernels
