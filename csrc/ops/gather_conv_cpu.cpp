#include "../parts/conv_dense.h"
#include "../parts/conv_dense_weight.h"
#include "../parts/conv_depthwise.h"
#include "../parts/conv_depthwise_weight.h"
#include "../parts/conv_winograd.h"
#include "gather_conv.h"

namespace cwkernels::CWK_ISA {
namespace {

// Calls f with the kernel class of this pass, float or double.
template <class T, class F>
void with_kernel(const GatherConvParams& p, Arena& arena, const F& f) {
  const bool weight = p.pass == ConvPass::backward_weight;
  if (p.depthwise) {
    weight ? f(DepthwiseWeightGradient<T>(p, arena)) : f(DepthwiseConvolution<T>(p, arena));
  } else if (winograd_applies<T>(p)) {
    weight ? f(WinogradGatherWeightGradient<T>(p, arena))
           : f(WinogradGatherConvolution<T>(p, arena));
  } else {
    weight ? f(DenseWeightGradient<T>(p, arena)) : f(DenseConvolution<T>(p, arena));
  }
}

template <class F>
void with_kernel(const GatherConvParams& p, Arena& arena, const F& f) {
  p.double_precision ? with_kernel<double>(p, arena, f) : with_kernel<float>(p, arena, f);
}

}  // namespace

int64_t gather_conv_workspace(const GatherConvParams& params) {
  Arena arena(nullptr);
  with_kernel(params, arena, [](const auto&) {});
  return arena.used();
}

void gather_conv(const GatherConvParams& params) {
  Arena arena(params.workspace);
  with_kernel(params, arena, [](const auto& kernel) { kernel.run(); });
}

}  // namespace cwkernels::CWK_ISA
