#include "conv_norm_general.cuh"
#include "conv_norm_tile.cuh"
#include "conv_norm_weight.cuh"

namespace cwkernels {
namespace {

// The partial results of the input's gradient lie before those of the weights'.
CudaScratch input_gradient_scratch(const ConvNormParams& p) {
  if (!p.grad_input || !p.statistics) return {};
  const auto general = [&](const auto& pass) {
    return pass.partials.scratch(p.architectures * pass.chunks);
  };
  if (p.double_precision) return general(sums_pass<double>(p));
  return input_gradient_is_tiled(p) ? input_gradient_tile_scratch(p) : general(sums_pass<float>(p));
}

int64_t weight_offset(const ConvNormParams& p) {
  return (input_gradient_scratch(p).bytes + 127) / 128 * 128;
}

// Takes over a sum of weights that is still to be made.
int input_gradient(const ConvNormParams& p, const WeightSum<float>& rest, void* stream) {
  if (p.grad_input && input_gradient_is_tiled(p)) {
    return with_precision(p, [&](auto precision) {
      return launch_input_gradient_tile<decltype(precision)>(p, rest, stream);
    });
  }
  const int error = launch_weight_sum(rest, stream);
  if (error != 0 || !p.grad_input) return error;
  return with_stored(p, [&](auto of) {
    return launch_input_gradient_general<typename decltype(of)::Type>(p, stream);
  });
}

int weight_gradient(const ConvNormParams& p, WeightSum<float>* rest, void* stream) {
  if (conv_norm_weight_is_tiled(p)) {
    auto* partials = reinterpret_cast<float*>(static_cast<char*>(p.workspace) + weight_offset(p));
    return with_precision(p, [&](auto precision) {
      return launch_weight_tile<decltype(precision)>(p, partials, rest, stream);
    });
  }
  return with_stored(
      p, [&](auto of) { return launch_weight_general<typename decltype(of)::Type>(p, stream); });
}

bool forward_is_tiled(const ConvNormParams& p) {
  return conv_norm_is_tiled(p) || conv_norm_is_narrow(p);
}

}  // namespace

CudaScratch conv_norm_cuda_scratch(const ConvNormParams& p) {
  const auto general = [&](const auto& pass) {
    return pass.partials.scratch(p.architectures * pass.chunks);
  };
  if (p.double_precision) return general(measure_pass<double>(p));
  return forward_is_tiled(p) ? forward_tile_scratch(p) : general(measure_pass<float>(p));
}

CudaScratch conv_norm_backward_cuda_scratch(const ConvNormParams& p) {
  const CudaScratch scratch = input_gradient_scratch(p);
  if (!conv_norm_weight_is_tiled(p)) return scratch;
  const CudaScratch own = weight_tile_scratch(p);
  return {weight_offset(p) + own.bytes, scratch.tickets + own.tickets};
}

int conv_norm_cuda(const ConvNormParams& p, void* stream) {
  if (forward_is_tiled(p)) {
    return with_precision(
        p, [&](auto precision) { return launch_forward_tile<decltype(precision)>(p, stream); });
  }
  return with_stored(
      p, [&](auto of) { return launch_forward_general<typename decltype(of)::Type>(p, stream); });
}

int conv_norm_backward_cuda(const ConvNormParams& p, void* stream) {
  WeightSum<float> rest{};
  const int error = weight_gradient(p, &rest, stream);
  return error != 0 ? error : input_gradient(p, rest, stream);
}

}  // namespace cwkernels
