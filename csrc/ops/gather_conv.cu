#include "../parts/by_dtype.cuh"
#include "gather_conv.cuh"
#include "gather_conv_weight.cuh"

namespace cwkernels {

CudaScratch gather_conv_cuda_scratch(const GatherConvParams& params) {
  const bool used = params.pass == ConvPass::backward_weight && gather_weight_is_tiled(params);
  return {used ? gather_weight_workspace(params) : 0, 0};
}

int gather_conv_cuda(const GatherConvParams& params, void* stream) {
  if (params.pass == ConvPass::backward_weight && gather_weight_is_tiled(params)) {
    return with_precision(params, [&](auto precision) {
      return launch_gather_weight<decltype(precision)>(params, stream);
    });
  }
  return for_each_part(params, [&](const GatherConvLaunch& part) {
    if (params.pass != ConvPass::backward_weight && gather_conv_is_tiled(params)) {
      return with_precision(params, [&](auto precision) {
        return launch_gather_tile<decltype(precision)>(part, stream);
      });
    }
    return with_stored(params, [&](auto of) {
      return launch_gather_conv_general<typename decltype(of)::Type>(part, stream);
    });
  });
}

}  // namespace cwkernels
