#pragma once
#include <cstdint>

#include "../parts/parallel.h"

// inverted_bottleneck: identity, or expand 1 x 1 - depthwise R x R - project 1 x 1, each with an
// affine batch norm, ReLU behind the first two, residual where the shapes agree. Until a kernel
// fulfils this contract the operation is composed in cwkernels/ops/inverted_bottleneck.py.
// Shape comments: A architectures, N images each, C input, E hidden, K output channels, H x W input
// and H' x W' output pixels, S rows in a bank. Images are channels-last; strides are in elements.
namespace cwkernels {

// 3 of k3 e3, 3 of k5 e6, a strided identity's projection.
constexpr int kBottleneckConvolutions = 7;

enum class BottleneckCode : int64_t { identity, k3_e3, k5_e6 };

struct InvertedBottleneckParams {
  const void* input;         // [A or 1, N, H, W, C]
  const int64_t* selection;  // [A, 2]: operation code and row
  // [S, E, C, 1, 1], [S, E, 1, R, R], [S, K, E, 1, 1]
  const void* weights[kBottleneckConvolutions];
  const void* scales[kBottleneckConvolutions];        // [S, channels]
  const void* shifts[kBottleneckConvolutions];        // [S, channels]
  const void* running_mean[kBottleneckConvolutions];  // [S, channels], read in evaluation
  const void* running_var[kBottleneckConvolutions];   // [S, channels], read in evaluation

  void* output;      // [A, N, H', W', K]
  void* statistics;  // [A, 2, 2 E' + K], E' of the widest candidate; zero where nothing ran
  void* expanded;    // per architecture [N, H, W, E] raw, kept for backward; null: recompute
  void* filtered;    // per architecture [N, H', W', E] raw, kept for backward; null: recompute
  void* projected;   // per architecture [N, H', W', K] raw, kept for backward

  // backward
  const void* grad_output;                      // [A, N, H', W', K]
  void* grad_input;                             // [A or 1, N, H, W, C]
  void* grad_weights[kBottleneckConvolutions];  // [U, ...], one per distinct row
  void* grad_scales[kBottleneckConvolutions];   // [U, channels]
  void* grad_shifts[kBottleneckConvolutions];   // [U, channels]

  int64_t input_architecture_stride;  // 0: images shared by all architectures
  int64_t architectures, images, input_channels, output_channels;
  int64_t hidden_channels[2];  // of k3 e3 and of k5 e6
  int64_t height, width, stride;
  double eps;
  bool training;      // normalise by batch statistics, each architecture's own
  Parallel parallel;  // CPU only
};

}  // namespace cwkernels
