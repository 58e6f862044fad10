#pragma once
#include <torch/csrc/stable/accelerator.h>

#include <optional>

#include "checks.h"

namespace cwkernels {

// The current stream of a device as torch sees it, a cudaStream_t.
void* current_stream(int32_t device_index);
// The capture of a CUDA graph that a stream is part of, by its number; 0 for none. capture.cu.
uint64_t capture_of(void* stream);

// A call of an operation on the GPU: as long as it lives, the device of `on` is the current one.
// Construct it before what the kernels write is allocated.
class GpuCall {
 public:
  GpuCall(const char* operation, const Tensor& on);

  // The current stream of that device as torch sees it, a cudaStream_t.
  void* stream() const { return stream_; }
  // Throws if `error`, a launch's cudaError_t, is one.
  void check(int error) const;

 private:
  const char* operation_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  void* stream_;
};

}  // namespace cwkernels
