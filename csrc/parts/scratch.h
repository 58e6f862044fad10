#pragma once
#include <cstdint>

namespace cwkernels {

// What the kernels of a call on the GPU need beside its tensors; the binding allocates it.
struct CudaScratch {
  int64_t bytes = 0;
  int64_t tickets = 0;  // unsigned zeros, which are zeros again when the call is over
};

}  // namespace cwkernels
