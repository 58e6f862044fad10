#pragma once
#include <cstdint>

namespace cwkernels {

// The current CUDA stream of a device as torch sees it, a cudaStream_t.
void* current_stream(int32_t device_index);

}  // namespace cwkernels
