#pragma once
#include <cstdint>

namespace cwkernels {

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
