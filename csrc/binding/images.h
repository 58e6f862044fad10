#pragma once
#include <torch/csrc/stable/ops.h>

#include "checks.h"
#include "workspace.h"

// Images [..., N, C, H, W] that lie channels-last in memory, [..., N, H, W, C]. The stable
// interface has no permute before torch 2.14.
namespace cwkernels {

// Views of the same memory: [..., C, H, W] as [..., H, W, C] and back.
inline Tensor channels_behind(const Tensor& tensor) {
  const int64_t d = tensor.dim();
  return torch::stable::transpose(torch::stable::transpose(tensor, d - 3, d - 2), d - 2, d - 1);
}
inline Tensor channels_before(const Tensor& tensor) {
  const int64_t d = tensor.dim();
  return torch::stable::transpose(torch::stable::transpose(tensor, d - 2, d - 1), d - 3, d - 2);
}

// The same images, dense and channels-last: a copy unless they lie so.
inline Tensor dense_images(const Tensor& tensor) {
  return channels_before(torch::stable::contiguous(channels_behind(tensor)));
}

// New images, dense and channels-last, from [..., N, H, W, C].
inline Tensor new_images(const Tensor& like, const std::vector<int64_t>& channels_last_size) {
  return channels_before(new_tensor(like, channels_last_size));
}
inline Tensor new_channels_last(const Tensor& like, int64_t a, int64_t n, int64_t c, int64_t h,
                                int64_t w) {
  return new_images(like, {a, n, h, w, c});
}

}  // namespace cwkernels
