#include "../../../csrc/ops/reduction_conv.h"

#include "../naive.h"

namespace {

using namespace native;
using cwkernels::ConvNormParams;
using cwkernels::ReductionConvParams;

struct Case {
  Shape input;
  int64_t outputs;
};

template <class T>
struct Inputs {
  Buffer<T> input, weight, shortcut, grad, grad_shortcut;
};

template <class T>
ConvNormParams convolution(const Case& c, const Inputs<T>& in, const Buffer<T>& weight,
                           int64_t size, const Parallel& parallel) {
  ConvNormParams p{};
  p.input = in.input.data();
  p.weight = weight.data();
  p.architectures = c.input.architectures;
  p.images = c.input.images;
  p.input_channels = c.input.channels;
  p.output_channels = c.outputs;
  p.height = c.input.height;
  p.width = c.input.width;
  p.kernel_size = size;
  p.stride = size == 3 ? 2 : 1;
  p.relu = size == 3;
  p.pool = size == 1;
  p.double_precision = sizeof(T) == 8;
  p.parallel = parallel;
  return p;
}

template <class T>
ReductionConvParams params_of(const Case& c, const Inputs<T>& in, const Parallel& parallel) {
  ReductionConvParams p{};
  p.conv = convolution(c, in, in.weight, 3, parallel);
  p.shortcut = convolution(c, in, in.shortcut, 1, parallel);
  return p;
}

template <class T>
void run(Isa isa, const Case& c, const std::string& name) {
  const Shape& s = c.input;
  const Convolution conv{s, c.outputs, 3, 2};
  const Convolution shortcut{s.with(s.height / 2, s.width / 2, s.channels), c.outputs, 1, 1};
  const int64_t size = conv.output().size();
  Inputs<T> in;
  in.input = random_values<T>(s.size(), 1);
  in.weight = random_values<T>(conv.weights(), 2);
  in.shortcut = random_values<T>(shortcut.weights(), 3);
  in.grad = random_values<T>(size, 4);
  in.grad_shortcut = random_values<T>(size, 5);
  const Values input = values_of(in.input), rectified = rectify(input);
  const Values pooled = pool_blocks(input, s);

  Values wanted = conv.forward(rectified, values_of(in.weight));
  const Values other = shortcut.forward(pooled, values_of(in.shortcut));
  wanted.insert(wanted.end(), other.begin(), other.end());
  check<T>(
      name + ", forward", wanted,
      [&](const Parallel& parallel) {
        ReductionConvParams p = params_of(c, in, parallel);
        const Buffer<T> result(size), result_of_shortcut(size);
        const Buffer<T> statistics(s.architectures * 2 * c.outputs);
        p.conv.output = result.data();
        p.conv.measured = statistics.data();
        p.shortcut.output = result_of_shortcut.data();
        p.shortcut.measured = statistics.data();
        const Workspace workspace(CWK_CALL_CPU(isa, reduction_conv_workspace, p));
        p.workspace = workspace.data();
        CWK_CALL_CPU(isa, reduction_conv, p);
        return joined<T>({&result, &result_of_shortcut});
      },
      kTolerance<T>);

  const Values grad = values_of(in.grad), grad_shortcut = values_of(in.grad_shortcut);
  Values all = rectify_backward(conv.input_gradient(grad, values_of(in.weight)), input);
  add(all, pool_blocks_backward(shortcut.input_gradient(grad_shortcut, values_of(in.shortcut)), s));
  for (const Values& more :
       {conv.weight_gradient(grad, rectified), shortcut.weight_gradient(grad_shortcut, pooled)}) {
    all.insert(all.end(), more.begin(), more.end());
  }
  check<T>(
      name + ", gradients", all,
      [&](const Parallel& parallel) {
        ReductionConvParams p = params_of(c, in, parallel);
        const Buffer<T> own_input(s.size()), weight(conv.weights()), other(shortcut.weights());
        p.conv.grad_output = in.grad.data();
        p.conv.grad_input = own_input.data();
        p.conv.grad_weight = weight.data();
        p.shortcut.grad_output = in.grad_shortcut.data();
        p.shortcut.grad_weight = other.data();
        const Workspace workspace(CWK_CALL_CPU(isa, reduction_conv_backward_workspace, p));
        p.workspace = workspace.data();
        CWK_CALL_CPU(isa, reduction_conv_backward, p);
        return joined<T>({&own_input, &weight, &other});
      },
      kTolerance<T>);
}

const std::vector<Case> kCases = {
    {{1, 2, 6, 8, 3}, 5},
    {{2, 2, 8, 6, 16}, 32},
};

const Operation operation("reduction_conv", [](Isa isa) {
  for (size_t i = 0; i < kCases.size(); ++i) {
    const std::string name = "reduction_conv case " + std::to_string(i);
    run<float>(isa, kCases[i], name + ", float");
    run<double>(isa, kCases[i], name + ", double");
  }
});

}  // namespace
