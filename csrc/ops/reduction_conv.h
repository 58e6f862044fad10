#pragma once
#include "conv_norm.h"

// reduction_conv: the two convolutions that read the input of a residual reduction. Each is a call
// of conv_norm of its own, of the same raw input.
namespace cwkernels {

struct ReductionConvParams {
  ConvNormParams conv;      // 3 x 3 at stride 2, of what was rectified
  ConvNormParams shortcut;  // 1 x 1, of what was averaged; grad_input stays null: the gradient of
                            // the input, in conv's, is the sum of both
  void* workspace;          // as in ConvNormParams, for both
  unsigned* tickets;
};

CudaScratch reduction_conv_cuda_scratch(const ReductionConvParams& params);
int reduction_conv_cuda(const ReductionConvParams& params, void* stream);
CudaScratch reduction_conv_backward_cuda_scratch(const ReductionConvParams& params);
int reduction_conv_backward_cuda(const ReductionConvParams& params, void* stream);

}  // namespace cwkernels

CWK_DECLARE_CPU(int64_t reduction_conv_workspace(const ReductionConvParams& params))
CWK_DECLARE_CPU(void reduction_conv(const ReductionConvParams& params))
CWK_DECLARE_CPU(int64_t reduction_conv_backward_workspace(const ReductionConvParams& params))
CWK_DECLARE_CPU(void reduction_conv_backward(const ReductionConvParams& params))
