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

int input_gradient(const ConvNormParams& p, void* stream) {
  if (!p.grad_input) return 0;
  if (input_gradient_is_tiled(p)) {
    return with_precision(p, [&](auto precision) {
      return launch_input_gradient_tile<decltype(precision)>(p, stream);
    });
  }
  return with_stored(p, [&](auto of) {
    return launch_input_gradient_general<typename decltype(of)::Type>(p, stream);
  });
}

int weight_gradient(const ConvNormParams& p, void* stream) {
  if (conv_norm_weight_is_tiled(p)) {
    auto* partials = reinterpret_cast<float*>(static_cast<char*>(p.workspace) + weight_offset(p));
    return with_precision(p, [&](auto precision) {
      return launch_weight_tile<decltype(precision)>(p, partials, stream);
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
  CudaScratch scratch = input_gradient_scratch(p);
  if (conv_norm_weight_is_tiled(p)) scratch.bytes = weight_offset(p) + weight_tile_bytes(p);
  return scratch;
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
  const int error = input_gradient(p, stream);
  return error != 0 ? error : weight_gradient(p, stream);
}

}  // namespace cwkernels
