#pragma once
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "../parts/scratch.h"
#include "checks.h"

namespace cwkernels {

// At least `count` zeros on the device of `like`, for kernels on its current stream that leave them
// as zeros. On the emulator they are new ones: a launch that failed left no zeros.
#if CWK_EMULATED
inline Tensor ticket_zeros(const Tensor& like, int64_t count) {
  return torch::stable::new_zeros(like, std::vector<int64_t>{count},
                                  torch::headeronly::ScalarType::Int);
}
#else
Tensor ticket_zeros(const Tensor& like, int64_t count);
#endif

// Scratch of one call on the GPU, from torch's allocator; it must outlive GpuCall::check of what
// uses it.
class GpuScratch {
 public:
  GpuScratch(const CudaScratch& wanted, const Tensor& like)
      : bytes_(torch::stable::new_empty(like, std::vector<int64_t>{wanted.bytes},
                                        torch::headeronly::ScalarType::Byte)),
        tickets_(ticket_zeros(like, wanted.tickets)) {}

  void* data() const { return bytes_.mutable_data_ptr(); }
  unsigned* tickets() const { return static_cast<unsigned*>(tickets_.mutable_data_ptr()); }

 private:
  Tensor bytes_, tickets_;
};

}  // namespace cwkernels

// Runs CUDA kernels that have scratch, as CWK_RUN_CPU runs those of the CPU: `call` is the GpuCall,
// `like` a tensor on its device.
#define CWK_RUN_GPU(call, function, params, like)                                   \
  do {                                                                              \
    const ::cwkernels::GpuScratch scratch(function##_cuda_scratch(params), (like)); \
    (params).workspace = scratch.data();                                            \
    (params).tickets = scratch.tickets();                                           \
    (call).check(function##_cuda(params, (call).stream()));                         \
  } while (false)
