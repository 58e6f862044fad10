#pragma once
#include "gather_conv_general.cuh"

namespace cwkernels {

// Runs f for each launch's architectures; returns the first error.
template <class F>
int for_each_part(const GatherConvParams& params, const F& f) {
  for (int64_t first = 0; first < params.architectures; first += kGatherConvMost) {
    if (const int error = f(gather_conv_part(params, first))) return error;
  }
  return 0;
}

}  // namespace cwkernels
