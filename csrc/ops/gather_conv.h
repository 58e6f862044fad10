#pragma once
#include <cstdint>

#include "../parts/isa.h"
#include "../parts/parallel.h"
#include "../parts/scratch.h"

// gather_conv: a convolution whose weight set is a row of a bank, chosen per architecture:
//   output[a] = conv(input[a], weight[rows[a]]), padding R / 2, stride 1 or 2.
// Shape comments: A architectures, N images each, C input and K output channels, R x R taps (odd),
// H x W input and H' x W' output pixels (H' = (H - 1) / stride + 1), S rows in the bank, U distinct
// rows among `rows`. Strides are in elements; channels are always dense (stride 1).
namespace cwkernels {

enum class ConvPass { forward, backward_input, backward_weight };

// Where the pixels of a channels-last tensor [A, N, H, W, C] lie.
struct PixelStrides {
  int64_t architecture;  // 0: one set of images, shared by all architectures
  int64_t image;
  int64_t row;
  int64_t column;
};

struct GatherConvParams {
  ConvPass pass;
  bool depthwise;         // K == C, one input channel for each output channel
  bool double_precision;  // all tensors are float64, otherwise float32
  bool bf16_images;       // GPU only: input and output are bfloat16, the others float32
  bool winograd;          // F(4x4, 3x3) may be used where it applies (CPU: parts/conv_winograd.h)

  // forward reads input and weight and writes output. backward_input reads output (the gradient of
  // it) and weight and writes input (the gradient of it; summed over the architectures in order if
  // they share images). backward_weight reads input and output and writes weight_grad.
  void* input;           // [A or 1, N, H, W, C]
  const void* weight;    // [S, K, C or 1, R, R] contiguous
  void* output;          // [A, N, H', W', K]
  void* weight_grad;     // [U, K, C or 1, R, R] contiguous
  const int64_t* rows;   // [A], forward and backward_input: the row in `weight`
  const int64_t* slots;  // [A], backward_weight: the row in `weight_grad`, in [0, U)
  PixelStrides input_strides;
  PixelStrides output_strides;

  int64_t architectures, images;
  int64_t input_height, input_width, input_channels;
  int64_t output_height, output_width, output_channels;
  int64_t kernel_size, stride;
  int64_t slot_count;  // U

  Parallel parallel;  // CPU only
  void* workspace;    // gather_conv_workspace(params) bytes, 64-byte aligned; on a GPU
                      // those of gather_conv_cuda_scratch(params)
};

CudaScratch gather_conv_cuda_scratch(const GatherConvParams& params);
// Launches on `stream`, a cudaStream_t; rows and slots are read on the host, before it returns.
// Returns the launches' cudaError_t.
int gather_conv_cuda(const GatherConvParams& params, void* stream);

}  // namespace cwkernels

CWK_DECLARE_CPU(int64_t gather_conv_workspace(const GatherConvParams& params))
CWK_DECLARE_CPU(void gather_conv(const GatherConvParams& params))
