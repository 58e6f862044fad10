#pragma once
#include <cstdint>

#include "../parts/parallel.h"

// norm_add: relu(normalise(input) + shortcut). Until a kernel fulfils this contract the operation
// is composed in cwkernels/ops/norm_add.py. Shape comments: A architectures, N images each, C
// channels, H x W pixels, channels-last.
namespace cwkernels {

struct NormAddParams {
  const void* input;       // [A, N, H, W, C], raw
  const void* statistics;  // [A, 2, C] mean and biased variance
  const void* scale;       // [C] or null
  const void* shift;       // [C] or null
  const void* shortcut;    // [A, N, H, W, C] or null
  void* output;            // [A, N, H, W, C]

  // backward
  const void* grad_output;  // [A, N, H, W, C]
  void* grad_input;         // [A, N, H, W, C]
  void* grad_scale;         // [C], summed over the architectures in order
  void* grad_shift;         // [C]
  void* grad_shortcut;      // [A, N, H, W, C] or null

  int64_t architectures, pixels, channels;  // pixels: N H W
  double eps;
  bool relu;
  bool training;      // the statistics are the input's own: its gradient goes through them too
  Parallel parallel;  // CPU only
};

}  // namespace cwkernels
