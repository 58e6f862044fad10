#pragma once
#include <cstdint>

#include "../parts/isa.h"
#include "../parts/scratch.h"
#include "gather_conv.h"

// norm_add: relu(normalise(input) + shortcut). Shape comments: A architectures, N images each, C
// channels, H x W pixels. All tensors are channels-last and dense, but for the gradient of the
// output, which may lie as autograd leaves it as long as its channels are dense: expanded pixels
// after a global average, slices.
namespace cwkernels {

enum class NormAddPass { forward, backward };

struct NormAddParams {
  NormAddPass pass;
  bool double_precision;  // all tensors are float64, otherwise float32
  bool bf16_images;       // CUDA only: tensors [A, N, H, W, C] are bfloat16, the others float32

  const void* input;       // [A, N, H, W, C], raw
  const void* statistics;  // [A, 2, C] mean and biased variance
  const void* scale;       // [C] or null
  const void* shift;       // [C] or null, with scale

  // forward
  const void* shortcut;  // [A, N, H, W, C] or null
  void* output;          // [A, N, H, W, C]

  // backward
  const void* grad_output;    // [A, N, H, W, C], with grad_strides
  PixelStrides grad_strides;  // in elements
  const void* saved_output;   // [A, N, H, W, C], what was rectified; null: recomputed from input
  void* grad_input;           // [A, N, H, W, C]
  void* grad_scale;           // [C], summed over the architectures in order; null without scale
  void* grad_shift;           // [C]
  void* grad_shortcut;        // [A, N, H, W, C] or null; with saved_output only

  int64_t architectures, images, height, width, channels;
  double eps;
  bool relu;
  bool training;  // the statistics are the input's own: its gradient goes through them too

  Parallel parallel;  // CPU only
  void* workspace;    // norm_add_workspace(params) bytes, 64-byte aligned; CUDA: of its scratch
  unsigned* tickets;  // CUDA only: of its scratch
};

// What the launches of these params need, workspace and tickets set or not.
CudaScratch norm_add_cuda_scratch(const NormAddParams& params);
// Launches on `stream`, a cudaStream_t. Returns the first launch's cudaError_t that is one.
int norm_add_cuda(const NormAddParams& params, void* stream);

}  // namespace cwkernels

CWK_DECLARE_CPU(int64_t norm_add_workspace(const NormAddParams& params))
CWK_DECLARE_CPU(void norm_add(const NormAddParams& params))
