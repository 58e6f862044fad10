#pragma once
#include <cstdint>

#include "../parts/isa.h"
#include "../parts/parallel.h"
#include "../parts/scratch.h"

// conv_norm: convolution of relu(normalise(input)), averaged 2 x 2 if asked, with its output's
// statistics. Shape comments: A architectures, N images each, C input and K output channels, H x W
// input and H' x W' output pixels, R x R taps. Images are dense and channels-last.
namespace cwkernels {

struct ConvNormParams {
  const void* input;       // [A, N, H, W, C], raw
  const void* weight;      // [K, C, R, R] contiguous, shared by all architectures
  const void* statistics;  // [A, 2, C] mean and biased variance, or null: not normalised
  const void* scale;       // [C] or null
  const void* shift;       // [C] or null
  void* output;            // [A, N, H', W', K], raw
  void* measured;          // [A, 2, K]; null in backward

  // backward
  const void* grad_output;  // [A, N, H', W', K]
  void* grad_input;         // [A, N, H, W, C], or null: not wanted
  void* grad_weight;        // [K, C, R, R], summed over the architectures in order
  void* grad_scale;         // [C], summed likewise, or null
  void* grad_shift;         // [C] or null

  int64_t architectures, images, input_channels, output_channels;
  int64_t height, width, kernel_size, stride;
  double eps;
  bool relu, pool;
  bool training;          // the statistics are the input's own: its gradient goes through them too
  bool winograd;          // 3 x 3 convolutions may run by Winograd's method (precision "high")
  bool double_precision;  // all tensors are float64, otherwise float32
  bool bf16_images;       // GPU only: tensors [A, N, ...] are bfloat16, the others float32
  Parallel parallel;      // CPU only
  void* workspace;        // conv_norm_workspace(params) bytes, 64-byte aligned; on a GPU those of
                          // conv_norm_cuda_scratch(params)
  unsigned* tickets;      // GPU only: likewise
};

// On `stream`, a cudaStream_t. They return the launches' cudaError_t.
CudaScratch conv_norm_cuda_scratch(const ConvNormParams& params);
int conv_norm_cuda(const ConvNormParams& params, void* stream);
CudaScratch conv_norm_backward_cuda_scratch(const ConvNormParams& params);
int conv_norm_backward_cuda(const ConvNormParams& params, void* stream);

}  // namespace cwkernels

CWK_DECLARE_CPU(int64_t conv_norm_workspace(const ConvNormParams& params))
CWK_DECLARE_CPU(void conv_norm(const ConvNormParams& params))
CWK_DECLARE_CPU(int64_t conv_norm_backward_workspace(const ConvNormParams& params))
CWK_DECLARE_CPU(void conv_norm_backward(const ConvNormParams& params))
