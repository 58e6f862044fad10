#include "conv_norm_general.cuh"

namespace cwkernels {
namespace {

template <class T>
int backward(const ConvNormParams& p, void* stream) {
  if (p.grad_input) {
    if (const int error = launch_input_gradient_general<T>(p, stream)) return error;
  }
  return launch_weight_general<T>(p, stream);
}

}  // namespace

CudaScratch conv_norm_cuda_scratch(const ConvNormParams& p) {
  const int64_t slots = p.architectures;
  if (p.double_precision) {
    const auto pass = measure_pass<double>(p);
    return pass.partials.scratch(slots * pass.chunks);
  }
  const auto pass = measure_pass<float>(p);
  return pass.partials.scratch(slots * pass.chunks);
}

CudaScratch conv_norm_backward_cuda_scratch(const ConvNormParams& p) {
  const int64_t slots = p.architectures;
  if (p.double_precision) {
    const auto pass = sums_pass<double>(p);
    return pass.partials.scratch(slots * pass.chunks);
  }
  const auto pass = sums_pass<float>(p);
  return pass.partials.scratch(slots * pass.chunks);
}

int conv_norm_cuda(const ConvNormParams& params, void* stream) {
  return params.double_precision ? launch_forward_general<double>(params, stream)
                                 : launch_forward_general<float>(params, stream);
}

int conv_norm_backward_cuda(const ConvNormParams& params, void* stream) {
  return params.double_precision ? backward<double>(params, stream)
                                 : backward<float>(params, stream);
}

}  // namespace cwkernels
