#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

// Images are [A, N, C, H, W] in shape and channels-last in memory: [A, N, H, W, C].
namespace cwkernels {

using torch::stable::Tensor;

// Views of the same memory: [A, N, C, H, W] as [A, N, H, W, C] and back. The stable interface has
// no permute before torch 2.14.
inline Tensor channels_behind(const Tensor& tensor) {
  return torch::stable::transpose(torch::stable::transpose(tensor, 2, 3), 3, 4);
}
inline Tensor channels_before(const Tensor& tensor) {
  return torch::stable::transpose(torch::stable::transpose(tensor, 3, 4), 2, 3);
}

inline Tensor new_channels_last(const Tensor& like, int64_t a, int64_t n, int64_t c, int64_t h,
                                int64_t w) {
  const Tensor dense = torch::stable::new_empty(like, {a, n, h, w, c});
  return channels_before(dense);
}

// The images [A, N, H, W, C], copied unless they lie so.
inline Tensor dense_channels_last(const Tensor& tensor) {
  return torch::stable::contiguous(channels_behind(tensor));
}

}  // namespace cwkernels
