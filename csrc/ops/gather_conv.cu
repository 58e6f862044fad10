#include "gather_conv.cuh"
#include "gather_conv_weight.cuh"

namespace cwkernels {

CudaScratch gather_conv_cuda_scratch(const GatherConvParams& params) {
  const bool used = params.pass == ConvPass::backward_weight && gather_weight_is_tiled(params);
  return {used ? gather_weight_workspace(params) : 0, 0};
}

int gather_conv_cuda(const GatherConvParams& params, void* stream) {
  if (params.pass == ConvPass::backward_weight && gather_weight_is_tiled(params)) {
    return params.winograd ? launch_gather_weight<Tf32>(params, stream)
                           : launch_gather_weight<Tf32x3>(params, stream);
  }
  return for_each_part(params, [&](const GatherConvLaunch& part) {
    if (params.pass != ConvPass::backward_weight && gather_conv_is_tiled(params)) {
      return params.winograd ? launch_gather_tile<Tf32>(part, stream)
                             : launch_gather_tile<Tf32x3>(part, stream);
    }
    return params.double_precision ? launch_gather_conv_general<double>(part, stream)
                                   : launch_gather_conv_general<float>(part, stream);
  });
}

}  // namespace cwkernels
