#pragma once
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "../parts/scratch.h"
#include "checks.h"

namespace cwkernels {

// Scratch of one call on the GPU, from torch's allocator; it must outlive GpuCall::check of what
// uses it.
class GpuScratch {
 public:
  GpuScratch(const CudaScratch& wanted, const Tensor& like)
      : bytes_(torch::stable::new_empty(like, std::vector<int64_t>{wanted.bytes},
                                        torch::headeronly::ScalarType::Byte)),
        tickets_(torch::stable::new_zeros(like, std::vector<int64_t>{wanted.tickets},
                                          torch::headeronly::ScalarType::Int)) {}

  void* data() const { return bytes_.mutable_data_ptr(); }
  unsigned* tickets() const { return static_cast<unsigned*>(tickets_.mutable_data_ptr()); }

 private:
  Tensor bytes_, tickets_;
};

}  // namespace cwkernels
