#pragma once
#include <torch/csrc/stable/accelerator.h>

#include <optional>

#include "checks.h"

namespace cwkernels {

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
