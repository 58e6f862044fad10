#pragma once
#include <cstdint>

#include "../parts/isa.h"
#include "../parts/parallel.h"
#include "../parts/scratch.h"

// inverted_bottleneck: identity, or expand 1 x 1 - depthwise R x R - project 1 x 1, each with an
// affine batch norm, ReLU behind the first two, residual where the shapes agree.
// Shape comments: A architectures, N images each, C input, E hidden, K output channels, H x W input
// and H' x W' output pixels, S rows in a bank, U distinct rows that were read. Images are dense and
// channels-last. Where the choice lies on the device, U is A: slot u is architecture u's.
namespace cwkernels {

// 3 of k3 e3, 3 of k5 e6, a strided identity's projection.
constexpr int kBottleneckConvolutions = 7;
constexpr int kBottleneckProjection = 6;

constexpr int kBottleneckCodes = 3;
enum class BottleneckCode : int64_t { identity, k3_e3, k5_e6 };

struct InvertedBottleneckParams {
  const void* input;  // [A or 1, N, H, W, C]
  // [A, 2], operation code and row, known to the host, which plans by it; or null and `chosen`.
  const int64_t* selection;
  // [A, 2] on the device, CUDA only: all launches happen, of the largest size, and their blocks
  // read what they are. A code or row that does not exist passes the input on where the shapes
  // agree, gives zeros where they do not, and reads no bank.
  const int32_t* chosen;
  // [S, E, C, 1, 1], [S, E, 1, R, R], [S, K, E, 1, 1]; the last one null in a layer that keeps the
  // shape
  const void* weights[kBottleneckConvolutions];
  const void* scales[kBottleneckConvolutions];        // [S, channels]
  const void* shifts[kBottleneckConvolutions];        // [S, channels]
  const void* running_mean[kBottleneckConvolutions];  // [S, channels], read in evaluation
  const void* running_var[kBottleneckConvolutions];   // [S, channels], read in evaluation

  void* output;      // [A, N, H', W', K]
  void* statistics;  // [A, 2, 2 E' + K], E' of the widest candidate; written where something ran
  // Kept for backward, each architecture's behind the one before (bottleneck_kept, or by `chosen`
  // as far apart as the most that one keeps): raw
  // [N, H, W, E] expanded and [N, H', W', E] filtered unless recomputed, [N, H', W', K] projected.
  void* kept;  // null: nothing is kept

  // backward; grad_output says that it is
  const void* grad_output;                      // [A, N, H', W', K]
  void* grad_input;                             // [A or 1, N, H, W, C]
  void* grad_weights[kBottleneckConvolutions];  // [U, ...], one per distinct row; null: not needed
  void* grad_scales[kBottleneckConvolutions];   // [U, channels]
  void* grad_shifts[kBottleneckConvolutions];   // [U, channels]
  const int64_t* slots;  // [A]: the place of the row among the distinct ones; null by `chosen`
  // By `chosen`: [banks, A], the row whose gradients a slot has, -1 where its architecture does not
  // read the bank, or one before it reads the same row: such a slot is not written.
  int64_t* grad_rows;

  int64_t input_architecture_stride;  // 0: images shared by all architectures
  int64_t architectures, images, input_channels, output_channels;
  int64_t sets;                // S
  int64_t hidden_channels[2];  // of k3 e3 and of k5 e6
  int64_t kernel_size[2];      // of their depthwise convolutions
  int64_t height, width, stride;
  double eps;
  bool training;   // normalise by batch statistics, each architecture's own
  bool recompute;  // the hidden tensors are not kept but computed again
  bool tf32;       // CUDA only: 1 x 1 convolutions of float may run in TF32
  bool double_precision;
  bool bf16_images;   // CUDA only: images, what is kept and the gradients of images are bf16
  Parallel parallel;  // CPU only
  void* workspace;    // inverted_bottleneck_workspace(params) bytes, 64-byte aligned; CUDA: of its
                      // scratch
  unsigned* tickets;  // CUDA only: of its scratch
};

// What the launches of these params need, workspace and tickets set or not.
CudaScratch inverted_bottleneck_cuda_scratch(const InvertedBottleneckParams& params);
// Launches on `stream`, a cudaStream_t. Returns the launches' cudaError_t.
int inverted_bottleneck_cuda(const InvertedBottleneckParams& params, void* stream);

inline int64_t bottleneck_side(int64_t side, int64_t stride) { return (side - 1) / stride + 1; }

// The elements that an architecture with this code keeps for backward.
inline int64_t bottleneck_kept(const InvertedBottleneckParams& p, int64_t code) {
  const int64_t output_pixels =
      p.images * bottleneck_side(p.height, p.stride) * bottleneck_side(p.width, p.stride);
  const int64_t projected = output_pixels * p.output_channels;
  if (code == 0) return p.weights[kBottleneckProjection] ? projected : 0;
  if (p.recompute) return projected;
  const int64_t hidden = p.hidden_channels[code - 1];
  return (p.images * p.height * p.width + output_pixels) * hidden + projected;
}

// The most that an architecture keeps, whatever it chooses.
inline int64_t bottleneck_most_kept(const InvertedBottleneckParams& p) {
  int64_t most = 0;
  for (int64_t code = 0; code < kBottleneckCodes; ++code) {
    const int64_t own = bottleneck_kept(p, code);
    most = own > most ? own : most;
  }
  return most;
}

}  // namespace cwkernels

CWK_DECLARE_CPU(int64_t inverted_bottleneck_workspace(const InvertedBottleneckParams& params))
CWK_DECLARE_CPU(void inverted_bottleneck(const InvertedBottleneckParams& params))
