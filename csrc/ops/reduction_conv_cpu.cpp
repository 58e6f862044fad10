#include "../parts/conv_plan.h"
#include "reduction_conv.h"

// One convolution after the other, and a pass that adds their gradients of the input: 4.2 MB each
// at 64 images of 16 x 32 x 32, which L3 still has.
namespace cwkernels::CWK_ISA {
namespace {

int64_t input_values(const ConvNormParams& p) {
  return p.architectures * p.images * p.height * p.width * p.input_channels;
}

ConvNormParams within(ConvNormParams p, void* workspace) {
  p.workspace = workspace;
  return p;
}

template <class T>
void add(const ConvNormParams& p, const T* more) {
  constexpr int64_t kTask = int64_t{1} << 15;
  T* sum = static_cast<T*>(p.grad_input);
  const int64_t count = input_values(p);
  parallel_for(p.parallel, ceil_div(count, kTask), [&](int64_t task) {
    const int64_t end = min(count, (task + 1) * kTask);
    for (int64_t i = task * kTask; i < end; ++i) sum[i] += more[i];
  });
}

// Of the shortcut's gradient of the input.
template <class T>
T* other_gradient(const ReductionConvParams& p, Arena& arena) {
  return arena.take<T>(p.conv.grad_input ? input_values(p.conv) : 0);
}

template <class T>
int64_t backward_workspace(const ReductionConvParams& p) {
  Arena arena(nullptr);
  other_gradient<T>(p, arena);
  return arena.used() +
         max(conv_norm_backward_workspace(p.conv), conv_norm_backward_workspace(p.shortcut));
}

template <class T>
void backward(const ReductionConvParams& p) {
  Arena arena(p.workspace);
  ConvNormParams shortcut = p.shortcut;
  T* other = other_gradient<T>(p, arena);
  if (p.conv.grad_input) shortcut.grad_input = other;
  void* rest = static_cast<char*>(p.workspace) + arena.used();
  conv_norm_backward(within(p.conv, rest));
  conv_norm_backward(within(shortcut, rest));
  if (p.conv.grad_input) add(p.conv, other);
}

}  // namespace

int64_t reduction_conv_workspace(const ReductionConvParams& p) {
  return max(conv_norm_workspace(p.conv), conv_norm_workspace(p.shortcut));
}
void reduction_conv(const ReductionConvParams& p) {
  conv_norm(within(p.conv, p.workspace));
  conv_norm(within(p.shortcut, p.workspace));
}
int64_t reduction_conv_backward_workspace(const ReductionConvParams& p) {
  return p.conv.double_precision ? backward_workspace<double>(p) : backward_workspace<float>(p);
}
void reduction_conv_backward(const ReductionConvParams& p) {
  p.conv.double_precision ? backward<double>(p) : backward<float>(p);
}

}  // namespace cwkernels::CWK_ISA
