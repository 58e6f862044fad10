#pragma once
#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cwkernels {

// Scratch of one call, 64-byte aligned. It comes from a pool that the process keeps, so that a step
// does not pay page faults for it; workspace.cpp.
class Workspace {
 public:
  explicit Workspace(int64_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const { return data_; }

 private:
  void* data_;
  size_t bytes_;
};

// An uninitialised contiguous tensor of the dtype and device of `like`. On the CPU the memory of a
// large one comes from an arena that the process keeps, and goes back there with the last
// reference: what a step saves for its backward pass would otherwise be faulted in anew in each
// step.
torch::stable::Tensor new_tensor(const torch::stable::Tensor& like,
                                 const std::vector<int64_t>& sizes);

}  // namespace cwkernels
