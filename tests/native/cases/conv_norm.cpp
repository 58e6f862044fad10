#include "../../../csrc/ops/conv_norm.h"

#include "../naive.h"

namespace {

using namespace native;
using cwkernels::ConvNormParams;

struct Case {
  Shape input;
  int64_t outputs, size, stride;
  bool normalised, affine, relu, pool, training;
  bool winograd = false;
};

template <class T>
struct Inputs {
  Buffer<T> input, weight, statistics, scale, shift, grad;
};

template <class T>
ConvNormParams params_of(const Case& c, const Inputs<T>& in, const Parallel& parallel) {
  ConvNormParams p{};
  p.input = in.input.data();
  p.weight = in.weight.data();
  p.statistics = c.normalised ? in.statistics.data() : nullptr;
  p.scale = c.affine ? in.scale.data() : nullptr;
  p.shift = c.affine ? in.shift.data() : nullptr;
  p.architectures = c.input.architectures;
  p.images = c.input.images;
  p.input_channels = c.input.channels;
  p.output_channels = c.outputs;
  p.height = c.input.height;
  p.width = c.input.width;
  p.kernel_size = c.size;
  p.stride = c.stride;
  p.eps = 1e-5;
  p.relu = c.relu;
  p.pool = c.pool;
  p.training = c.training;
  p.winograd = c.winograd;
  p.double_precision = sizeof(T) == 8;
  p.parallel = parallel;
  return p;
}

template <class T>
void run(Isa isa, const Case& c, const std::string& name) {
  const Shape& s = c.input;
  const Shape pooled = c.pool ? s.with(s.height / 2, s.width / 2, s.channels) : s;
  const Convolution conv{pooled, c.outputs, c.size, c.stride};
  const double tolerance = c.winograd && sizeof(T) == 4 ? kWinogradTolerance : kTolerance<T>;
  Inputs<T> in;
  in.input = random_values<T>(s.size(), 1);
  in.weight = random_values<T>(conv.weights(), 2);
  in.scale = random_values<T>(c.affine ? s.channels : 0, 3);
  in.shift = random_values<T>(c.affine ? s.channels : 0, 4);
  in.grad = random_values<T>(conv.output().size(), 5);
  const Values input = values_of(in.input), weight = values_of(in.weight);
  Norm norm{measure(input, s), values_of(in.scale), values_of(in.shift)};
  norm.training = c.training;
  in.statistics = buffer_of<T>(norm.statistics);

  const Values normal = c.normalised ? normalise(input, s, norm) : input;
  const Values rectified = c.relu ? rectify(normal) : normal;
  const Values loaded = c.pool ? pool_blocks(rectified, s) : rectified;
  const Values output = conv.forward(loaded, weight);
  const Values measured = measure(output, conv.output());
  Values wanted = output;
  wanted.insert(wanted.end(), measured.begin(), measured.end());
  check<T>(
      name + ", forward", wanted,
      [&](const Parallel& parallel) {
        ConvNormParams p = params_of(c, in, parallel);
        const Buffer<T> result(conv.output().size());
        const Buffer<T> statistics(s.architectures * 2 * c.outputs);
        p.output = result.data();
        p.measured = statistics.data();
        const Workspace workspace(CWK_CALL_CPU(isa, conv_norm_workspace, p));
        p.workspace = workspace.data();
        CWK_CALL_CPU(isa, conv_norm, p);
        return joined<T>({&result, &statistics});
      },
      tolerance);

  const Values grad = values_of(in.grad);
  Values to_input = conv.input_gradient(grad, weight);
  if (c.pool) to_input = pool_blocks_backward(to_input, s);
  if (c.relu) to_input = rectify_backward(to_input, normal);
  NormGradient gradient{to_input, {}, {}};
  if (c.normalised) gradient = normalise_backward(to_input, input, s, norm);
  const Values to_weight = conv.weight_gradient(grad, loaded);
  for (const bool parameters : {false, true}) {
    Values all = parameters ? to_weight : gradient.input;
    if (parameters && c.affine) {
      all.insert(all.end(), gradient.scale.begin(), gradient.scale.end());
      all.insert(all.end(), gradient.shift.begin(), gradient.shift.end());
    }
    check<T>(
        name + (parameters ? ", gradients of parameters" : ", input gradient"), all,
        [&](const Parallel& parallel) {
          ConvNormParams p = params_of(c, in, parallel);
          const Buffer<T> own_input(s.size()), own_weight(conv.weights());
          const Buffer<T> scale(in.scale.size()), shift(in.scale.size());
          p.grad_output = in.grad.data();
          // Where nothing is normalised the input's gradient may not be wanted.
          p.grad_input = parameters && !c.normalised ? nullptr : own_input.data();
          p.grad_weight = own_weight.data();
          p.grad_scale = c.affine ? scale.data() : nullptr;
          p.grad_shift = c.affine ? shift.data() : nullptr;
          const Workspace workspace(CWK_CALL_CPU(isa, conv_norm_backward_workspace, p));
          p.workspace = workspace.data();
          CWK_CALL_CPU(isa, conv_norm_backward, p);
          return parameters ? joined<T>({&own_weight, &scale, &shift}) : joined<T>({&own_input});
        },
        tolerance);
  }
}

const std::vector<Case> kCases = {
    // input; outputs, size, stride; normalised, affine, relu, pool, training
    {{1, 2, 9, 7, 3}, 16, 3, 1, false, false, false, false, true},
    {{2, 2, 7, 5, 5}, 7, 3, 2, false, false, true, false, true},
    {{2, 1, 6, 6, 16}, 32, 1, 1, true, true, true, false, true},
    {{1, 2, 8, 6, 17}, 33, 1, 1, false, false, false, true, true},
    {{3, 1, 5, 6, 8}, 12, 3, 1, true, true, true, false, false},
    {{1, 2, 7, 9, 6}, 5, 5, 1, true, false, false, false, true},
    {{1, 1, 5, 5, 4}, 4, 7, 2, true, true, true, false, true},
    {{2, 2, 16, 16, 16}, 32, 3, 2, true, true, true, false, true},
    {{1, 2, 12, 9, 16}, 16, 3, 1, true, true, true, false, true, true},
    {{2, 3, 8, 8, 32}, 48, 3, 1, true, true, true, false, true, true},
    {{1, 1, 32, 32, 16}, 16, 3, 1, false, false, true, false, true, true},
};

const Operation operation("conv_norm", [](Isa isa) {
  for (size_t i = 0; i < kCases.size(); ++i) {
    const std::string name = "conv_norm case " + std::to_string(i);
    run<float>(isa, kCases[i], name + ", float");
    run<double>(isa, kCases[i], name + ", double");
  }
});

}  // namespace
