#include "gather_conv.cuh"

namespace cwkernels {

int64_t gather_conv_cuda_workspace(const GatherConvParams& /*params*/) { return 0; }

int gather_conv_cuda(const GatherConvParams& params, void* stream) {
  return for_each_part(params, [&](const GatherConvLaunch& part) {
    return params.double_precision ? launch_gather_conv_general<double>(part, stream)
                                   : launch_gather_conv_general<float>(part, stream);
  });
}

}  // namespace cwkernels
