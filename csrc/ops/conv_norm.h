#pragma once
#include <cstdint>

#include "../parts/parallel.h"

// conv_norm: convolution of relu(normalise(input)), averaged 2 x 2 if asked, with its output's
// statistics. Until a kernel fulfils this contract the operation is composed in
// cwkernels/ops/conv_norm.py. Shape comments: A architectures, N images each, C input and K output
// channels, H x W input and H' x W' output pixels. Images are channels-last; strides in elements.
namespace cwkernels {

struct ConvNormParams {
  const void* input;       // [A, N, H, W, C], raw
  const void* weight;      // [K, C, R, R] contiguous, shared by all architectures
  const void* statistics;  // [A, 2, C] mean and biased variance, or null: not normalised
  const void* scale;       // [C] or null
  const void* shift;       // [C] or null
  void* output;            // [A, N, H', W', K], raw
  void* measured;          // [A, 2, K]

  // backward
  const void* grad_output;  // [A, N, H', W', K]
  void* grad_input;         // [A, N, H, W, C]
  void* grad_weight;        // [K, C, R, R], summed over the architectures in order
  void* grad_scale;         // [C]
  void* grad_shift;         // [C]

  int64_t architectures, images, input_channels, output_channels;
  int64_t height, width, kernel_size, stride;
  double eps;
  bool relu, pool;
  bool training;      // the statistics are the input's own: its gradient goes through them too
  Parallel parallel;  // CPU only
};

}  // namespace cwkernels
