#include "../../../csrc/ops/norm_add.h"

#include "../naive.h"

namespace {

using namespace native;
using cwkernels::NormAddParams;
using cwkernels::NormAddPass;

struct Case {
  Shape shape;
  bool affine, relu, shortcut, training;
  int64_t gap = 0;  // elements between the pixels of the output's gradient
};

template <class T>
struct Inputs {
  Buffer<T> input, statistics, scale, shift, shortcut, grad;
};

template <class T>
NormAddParams params_of(const Case& c, const Inputs<T>& in, NormAddPass pass,
                        const Parallel& parallel) {
  NormAddParams p{};
  p.pass = pass;
  p.double_precision = sizeof(T) == 8;
  p.input = in.input.data();
  p.statistics = in.statistics.data();
  p.scale = c.affine ? in.scale.data() : nullptr;
  p.shift = c.affine ? in.shift.data() : nullptr;
  p.architectures = c.shape.architectures;
  p.images = c.shape.images;
  p.height = c.shape.height;
  p.width = c.shape.width;
  p.channels = c.shape.channels;
  p.eps = 1e-5;
  p.relu = c.relu;
  p.training = c.training;
  p.parallel = parallel;
  return p;
}

void call(Isa isa, NormAddParams& p) {
  const Workspace workspace(CWK_CALL_CPU(isa, norm_add_workspace, p));
  p.workspace = workspace.data();
  CWK_CALL_CPU(isa, norm_add, p);
}

// The gradient as it lies, with gaps, and without.
template <class T>
Values draw_gradient(const Case& c, Inputs<T>& in) {
  const int64_t channels = c.shape.channels, pixels = c.shape.size() / channels;
  in.grad = random_values<T>(pixels * (channels + c.gap) - c.gap, 6);
  Values dense;
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t i = 0; i < channels; ++i) dense.push_back(in.grad[p * (channels + c.gap) + i]);
  }
  return dense;
}

template <class T>
void run(Isa isa, const Case& c, const std::string& name) {
  const Shape& s = c.shape;
  Inputs<T> in;
  in.input = random_values<T>(s.size(), 1);
  in.scale = random_values<T>(c.affine ? s.channels : 0, 2);
  in.shift = random_values<T>(c.affine ? s.channels : 0, 3);
  in.shortcut = random_values<T>(c.shortcut ? s.size() : 0, 4);
  const Values input = values_of(in.input), grad = draw_gradient(c, in);
  Norm norm{measure(input, s), values_of(in.scale), values_of(in.shift)};
  norm.training = c.training;
  in.statistics = buffer_of<T>(norm.statistics);

  Values sum = normalise(input, s, norm);
  if (c.shortcut) add(sum, values_of(in.shortcut));
  const Values output = c.relu ? rectify(sum) : sum;
  check<T>(name + ", forward", output, [&](const Parallel& parallel) {
    NormAddParams p = params_of(c, in, NormAddPass::forward, parallel);
    Buffer<T> result(s.size());
    p.shortcut = c.shortcut ? in.shortcut.data() : nullptr;
    p.output = result.data();
    call(isa, p);
    return result;
  });

  const Values passed = c.relu ? rectify_backward(grad, sum) : grad;
  const NormGradient gradient = normalise_backward(passed, input, s, norm);
  const bool saved = c.relu && c.shortcut;
  const Buffer<T> saved_output = buffer_of<T>(output);
  Values wanted = gradient.input;
  if (saved) wanted.insert(wanted.end(), passed.begin(), passed.end());
  if (c.affine) wanted.insert(wanted.end(), gradient.scale.begin(), gradient.scale.end());
  if (c.affine) wanted.insert(wanted.end(), gradient.shift.begin(), gradient.shift.end());
  check<T>(name + ", backward", wanted, [&](const Parallel& parallel) {
    NormAddParams p = params_of(c, in, NormAddPass::backward, parallel);
    const int64_t column = s.channels + c.gap, row = s.width * column;
    p.grad_output = in.grad.data();
    p.grad_strides = {s.images * s.height * row, s.height * row, row, column};
    p.saved_output = saved ? saved_output.data() : nullptr;
    const Buffer<T> to_input(s.size()), to_shortcut(saved ? s.size() : 0);
    const Buffer<T> to_scale(in.scale.size()), to_shift(in.scale.size());
    p.grad_input = to_input.data();
    p.grad_shortcut = saved ? to_shortcut.data() : nullptr;
    p.grad_scale = c.affine ? to_scale.data() : nullptr;
    p.grad_shift = c.affine ? to_shift.data() : nullptr;
    call(isa, p);
    return joined<T>({&to_input, &to_shortcut, &to_scale, &to_shift});
  });
}

const std::vector<Case> kCases = {
    // shape; affine, relu, shortcut, training
    {{1, 3, 1, 1, 1}, false, false, false, true},  {{1, 2, 9, 7, 16}, true, true, false, true},
    {{1, 3, 5, 4, 19}, true, true, true, true},    {{3, 2, 6, 5, 33}, true, false, true, true},
    {{2, 1, 7, 7, 64}, true, true, true, false},   {{2, 2, 4, 3, 5}, false, true, false, false},
    {{2, 2, 5, 3, 21}, true, true, true, true, 3}, {{1, 2, 24, 24, 24}, true, true, false, true, 1},
};

const Operation operation("norm_add", [](Isa isa) {
  for (size_t i = 0; i < kCases.size(); ++i) {
    const std::string name = "norm_add case " + std::to_string(i);
    run<float>(isa, kCases[i], name + ", float");
    run<double>(isa, kCases[i], name + ", double");
  }
});

}  // namespace
