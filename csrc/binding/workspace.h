#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

namespace cwkernels {

// Scratch for one call of a CPU kernel, 64-byte aligned, as long as this lives.
class Workspace {
 public:
  Workspace(int64_t bytes, const torch::stable::Tensor& like)
      : bytes_(torch::stable::empty(std::vector<int64_t>{bytes + 64},
                                    torch::headeronly::ScalarType::Byte, std::nullopt,
                                    like.device())) {}

  void* data() const {
    const auto address = reinterpret_cast<uintptr_t>(bytes_.mutable_data_ptr());
    return reinterpret_cast<void*>((address + 63) / 64 * 64);
  }

 private:
  torch::stable::Tensor bytes_;
};

}  // namespace cwkernels
