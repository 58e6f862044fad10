#pragma once
#include <cstdint>

#include "../parts/isa.h"
#include "../parts/parallel.h"

// batch: images by index, mirrored, shifted and normalised:
//   output[n, y, x, c] = (image[c, y - down, x' - right] - mean[c]) / deviation[c]
// of image = images[indices[n]], with zeros outside of it, and x' counted from the right where it
// is mirrored. The difference and the quotient are rounded as IEEE says, so every way to compute
// them gives the same bits. Shape comments: M images stored, N asked for, C channels, H x W pixels.
namespace cwkernels {

struct BatchParams {
  const uint8_t* images;   // [M, C, H, W], contiguous
  const int64_t* indices;  // [N], each in [0, M); on a GPU, where nobody has looked: or NaN
  const int64_t* shifts;   // [N, 2] pixels down and right, or null
  const bool* flips;       // [N] or null
  const float* mean;       // [C], in units of the images
  const float* deviation;  // [C]
  float* output;           // [N, H, W, C]

  int64_t stored, count, channels, height, width;

  Parallel parallel;  // CPU only
  void* workspace;    // CPU only: batch_workspace(params) bytes
};

// Launches on `stream`, a cudaStream_t. Returns the launch's cudaError_t.
int batch_cuda(const BatchParams& params, void* stream);

}  // namespace cwkernels

CWK_DECLARE_CPU(int64_t batch_workspace(const BatchParams& params))
CWK_DECLARE_CPU(void batch(const BatchParams& params))
