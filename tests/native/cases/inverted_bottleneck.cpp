#include "../../../csrc/ops/inverted_bottleneck.h"

#include <set>

#include "../naive.h"

namespace {

using namespace native;
using namespace cwkernels;

constexpr int kBanks = kBottleneckConvolutions;
constexpr int64_t kSets = 3;

struct Case {
  int64_t images, inputs, outputs, height, width, stride;
  int64_t hidden[2], size[2];                 // of both candidates
  std::vector<std::vector<int64_t>> choices;  // code and row of each architecture
  bool shared, training, recompute;

  int64_t architectures() const { return static_cast<int64_t>(choices.size()); }
  bool strided() const { return stride != 1 || inputs != outputs; }
  int64_t widest() const { return std::max(hidden[0], hidden[1]); }
  Shape input() const { return {1, images, height, width, inputs}; }
  Shape output() const {
    return {1, images, bottleneck_side(height, stride), bottleneck_side(width, stride), outputs};
  }
};

// The convolutions that a code runs: of banks [first, first + count).
struct Chain {
  int first, count;
};

Chain chain_of(const Case& c, int64_t code) {
  if (code == 0) return {kBottleneckProjection, c.strided() ? 1 : 0};
  return {code == 1 ? 0 : 3, 3};
}

Convolution convolution_of(const Case& c, int bank) {
  if (bank == kBottleneckProjection) return {c.input(), c.outputs, 1, c.stride};
  const int64_t hidden = c.hidden[bank / 3];
  const Shape expanded = c.input().with(c.height, c.width, hidden);
  if (bank % 3 == 0) return {c.input(), hidden, 1, 1};
  if (bank % 3 == 1) return {expanded, hidden, c.size[bank / 3], c.stride, true};
  return {c.output().with(c.output().height, c.output().width, hidden), c.outputs, 1, 1};
}

// Where the statistics of a bank's output begin in a row of them.
int64_t statistics_at(const Case& c, int bank) {
  return (bank == kBottleneckProjection ? 2 : bank % 3) * c.widest();
}

template <class T>
struct Inputs {
  Buffer<T> input, grad;
  Buffer<T> weights[kBanks], scales[kBanks], shifts[kBanks], mean[kBanks], var[kBanks];

  explicit Inputs(const Case& c) {
    input = random_values<T>((c.shared ? 1 : c.architectures()) * c.input().size(), 1);
    grad = random_values<T>(c.architectures() * c.output().size(), 2);
    for (int b = 0; b < (c.strided() ? kBanks : kBanks - 1); ++b) {
      const Convolution conv = convolution_of(c, b);
      weights[b] = random_values<T>(kSets * conv.weights(), 10 + b);
      scales[b] = random_values<T>(kSets * conv.outputs, 20 + b);
      shifts[b] = random_values<T>(kSets * conv.outputs, 30 + b);
      mean[b] = random_values<T>(kSets * conv.outputs, 40 + b);
      var[b] = random_values<T>(kSets * conv.outputs, 50 + b);
      for (int64_t i = 0; i < var[b].size(); ++i) var[b][i] += T(1.5);
    }
  }
};

template <class T>
Values slice(const Buffer<T>& buffer, int64_t index, int64_t size) {
  return Values(buffer.data() + index * size, buffer.data() + (index + 1) * size);
}

// One architecture's layer in plain loops.
template <class T>
struct NaiveLayer {
  const Case& c;
  Chain chain;
  bool residual;
  Values inputs[3], weights[3], raw[3], normal[3], output;
  Norm norms[3];

  NaiveLayer(const Case& wanted, const Inputs<T>& in, int64_t a) : c(wanted) {
    const int64_t code = c.choices[a][0], row = c.choices[a][1];
    chain = chain_of(c, code);
    residual = code != 0 && !c.strided();
    const Values own = slice(in.input, c.shared ? 0 : a, c.input().size());
    output = own;
    for (int i = 0; i < chain.count; ++i) {
      const int bank = chain.first + i;
      const Convolution conv = convolution_of(c, bank);
      inputs[i] = output;
      weights[i] = slice(in.weights[bank], row, conv.weights());
      raw[i] = conv.forward(inputs[i], weights[i]);
      Norm& norm = norms[i];
      norm.training = c.training;
      norm.scale = slice(in.scales[bank], row, conv.outputs);
      norm.shift = slice(in.shifts[bank], row, conv.outputs);
      norm.statistics = measure(raw[i], conv.output());
      if (!c.training) {
        norm.statistics = slice(in.mean[bank], row, conv.outputs);
        const Values var = slice(in.var[bank], row, conv.outputs);
        norm.statistics.insert(norm.statistics.end(), var.begin(), var.end());
      }
      normal[i] = normalise(raw[i], conv.output(), norm);
      output = i + 1 < chain.count ? rectify(normal[i]) : normal[i];
    }
    if (residual) add(output, own);
  }

  // The gradient of the input; of each convolution those of weight, scale and shift.
  Values backward(const Values& grad, Values (&parameters)[3][3]) const {
    Values passed = grad;
    for (int i = chain.count - 1; i >= 0; --i) {
      const Convolution conv = convolution_of(c, chain.first + i);
      if (i + 1 < chain.count) passed = rectify_backward(passed, normal[i]);
      const NormGradient own = normalise_backward(passed, raw[i], conv.output(), norms[i]);
      parameters[i][0] = conv.weight_gradient(own.input, inputs[i]);
      parameters[i][1] = own.scale;
      parameters[i][2] = own.shift;
      passed = conv.input_gradient(own.input, weights[i]);
    }
    if (residual) add(passed, grad);
    return passed;
  }
};

// The distinct rows of each code, and the place of each architecture's among them.
struct Distinct {
  std::set<int64_t> rows[3];
  std::vector<int64_t> slots;

  explicit Distinct(const Case& c) {
    for (const auto& choice : c.choices) rows[choice[0]].insert(choice[1]);
    for (const auto& choice : c.choices) {
      const std::set<int64_t>& own = rows[choice[0]];
      slots.push_back(std::distance(own.begin(), own.find(choice[1])));
    }
  }

  int64_t of_bank(int bank) const {
    return static_cast<int64_t>(rows[bank == kBottleneckProjection ? 0 : 1 + bank / 3].size());
  }
};

template <class T>
InvertedBottleneckParams params_of(const Case& c, const Inputs<T>& in,
                                   const Buffer<int64_t>& selection, const Parallel& parallel) {
  InvertedBottleneckParams p{};
  p.input = in.input.data();
  p.selection = selection.data();
  for (int b = 0; b < (c.strided() ? kBanks : kBanks - 1); ++b) {
    p.weights[b] = in.weights[b].data();
    p.scales[b] = in.scales[b].data();
    p.shifts[b] = in.shifts[b].data();
    p.running_mean[b] = c.training ? nullptr : in.mean[b].data();
    p.running_var[b] = c.training ? nullptr : in.var[b].data();
  }
  p.input_architecture_stride = c.shared ? 0 : c.input().size();
  p.architectures = c.architectures();
  p.images = c.images;
  p.input_channels = c.inputs;
  p.output_channels = c.outputs;
  for (int i : {0, 1}) {
    p.hidden_channels[i] = c.hidden[i];
    p.kernel_size[i] = c.size[i];
  }
  p.height = c.height;
  p.width = c.width;
  p.stride = c.stride;
  p.eps = 1e-5;
  p.training = c.training;
  p.recompute = c.recompute;
  p.double_precision = sizeof(T) == 8;
  p.parallel = parallel;
  return p;
}

void call(Isa isa, InvertedBottleneckParams& p) {
  const Workspace workspace(CWK_CALL_CPU(isa, inverted_bottleneck_workspace, p));
  p.workspace = workspace.data();
  CWK_CALL_CPU(isa, inverted_bottleneck, p);
}

template <class T>
struct Outputs {
  Buffer<T> output, statistics, kept;
};

template <class T>
Outputs<T> call_forward(Isa isa, const Case& c, const Inputs<T>& in,
                        const Buffer<int64_t>& selection, const Parallel& parallel) {
  InvertedBottleneckParams p = params_of(c, in, selection, parallel);
  int64_t kept = 0;
  for (const auto& choice : c.choices) kept += bottleneck_kept(p, choice[0]);
  const int64_t width = 2 * c.widest() + c.outputs;
  Outputs<T> out{Buffer<T>(in.grad.size()), buffer_of<T>(Values(p.architectures * 2 * width)),
                 Buffer<T>(kept)};
  p.output = out.output.data();
  p.statistics = out.statistics.data();
  p.kept = out.kept.data();
  call(isa, p);
  return out;
}

// The gradient of the input, or those of all banks that were read.
template <class T>
Buffer<T> call_backward(Isa isa, const Case& c, const Inputs<T>& in,
                        const Buffer<int64_t>& selection, const Parallel& parallel,
                        bool of_parameters) {
  const Outputs<T> forward = call_forward(isa, c, in, selection, parallel);
  const Distinct distinct(c);
  InvertedBottleneckParams p = params_of(c, in, selection, parallel);
  const Buffer<T> to_input(in.input.size());
  std::vector<Buffer<T>> owned;
  owned.reserve(3 * kBanks);
  void** const pointers[] = {p.grad_weights, p.grad_scales, p.grad_shifts};
  for (int b = 0; b < (c.strided() ? kBanks : kBanks - 1); ++b) {
    const Convolution conv = convolution_of(c, b);
    for (int g = 0; g < 3 && distinct.of_bank(b) > 0; ++g) {
      owned.emplace_back(distinct.of_bank(b) * (g == 0 ? conv.weights() : conv.outputs));
      pointers[g][b] = owned.back().data();
    }
  }
  Buffer<int64_t> slots(p.architectures);
  std::copy(distinct.slots.begin(), distinct.slots.end(), slots.data());
  p.slots = slots.data();
  p.statistics = forward.statistics.data();
  p.kept = forward.kept.data();
  p.grad_output = in.grad.data();
  p.grad_input = to_input.data();
  call(isa, p);
  if (!of_parameters) return joined<T>({&to_input});
  std::vector<const Buffer<T>*> parts;
  for (const Buffer<T>& own : owned) parts.push_back(&own);
  return joined<T>(parts);
}

template <class T>
void run(Isa isa, const Case& c, const std::string& name) {
  const Inputs<T> in(c);
  const Distinct distinct(c);
  const int64_t width = 2 * c.widest() + c.outputs;
  Buffer<int64_t> selection(2 * c.architectures());
  Values output, statistics(2 * width * c.architectures()), to_input(in.input.size());
  Values slots[kBanks][3];
  for (int64_t a = 0; a < c.architectures(); ++a) {
    std::copy_n(c.choices[a].begin(), 2, selection.data() + 2 * a);
    const NaiveLayer<T> layer(c, in, a);
    output.insert(output.end(), layer.output.begin(), layer.output.end());
    Values parameters[3][3];
    const Values grad = layer.backward(slice(in.grad, a, c.output().size()), parameters);
    for (size_t i = 0; i < grad.size(); ++i) {
      to_input[(c.shared ? 0 : a) * grad.size() + i] += grad[i];
    }
    for (int i = 0; i < layer.chain.count; ++i) {
      const int bank = layer.chain.first + i;
      const int64_t channels = convolution_of(c, bank).outputs;
      for (int64_t j = 0; j < 2 * channels; ++j) {
        statistics[(2 * a + j / channels) * width + statistics_at(c, bank) + j % channels] =
            layer.norms[i].statistics[j];
      }
      for (int g = 0; g < 3; ++g) {
        Values& all = slots[bank][g];
        const Values& own = parameters[i][g];
        all.resize(distinct.of_bank(bank) * own.size());
        for (size_t j = 0; j < own.size(); ++j) all[distinct.slots[a] * own.size() + j] += own[j];
      }
    }
  }
  Values to_parameters;
  for (const auto& bank : slots) {
    for (const Values& own : bank) {
      to_parameters.insert(to_parameters.end(), own.begin(), own.end());
    }
  }
  // A chain of batch norms multiplies what a convolution's rounding leaves.
  const double tolerance = sizeof(T) == 8 ? 1e-11 : 2e-4;
  const auto check_part = [&](const char* part, const Values& wanted, const auto& get) {
    check<T>(name + part, wanted, get, tolerance);
  };
  const auto forward = [&](const Parallel& parallel) {
    return call_forward(isa, c, in, selection, parallel);
  };
  check_part(", output", output, [&](const Parallel& p) { return forward(p).output; });
  if (c.training) {
    check_part(", statistics", statistics,
               [&](const Parallel& p) { return forward(p).statistics; });
  }
  check_part(", input gradient", to_input,
             [&](const Parallel& p) { return call_backward(isa, c, in, selection, p, false); });
  if (to_parameters.empty()) return;
  check_part(", gradients of parameters", to_parameters,
             [&](const Parallel& p) { return call_backward(isa, c, in, selection, p, true); });
}

const std::vector<Case> kCases = {
    // images, in, out, height, width, stride, hidden, sizes, choices; shared, training, recompute
    {2, 8, 8, 6, 5, 1, {24, 48}, {3, 5}, {{1, 0}}, false, true, false},
    {1, 5, 7, 7, 6, 2, {15, 30}, {3, 5}, {{2, 2}}, false, true, false},
    {2, 5, 5, 4, 7, 1, {15, 30}, {3, 5}, {{2, 1}, {1, 1}, {0, 0}, {2, 1}}, true, true, false},
    {2, 6, 9, 6, 5, 2, {18, 36}, {3, 5}, {{0, 1}, {1, 2}, {0, 1}, {0, 0}}, false, true, true},
    {1, 16, 16, 8, 8, 1, {48, 96}, {3, 5}, {{2, 0}, {1, 2}}, false, true, true},
    {2, 8, 16, 5, 5, 2, {24, 48}, {3, 5}, {{1, 1}, {2, 0}, {0, 2}}, true, false, false},
    {1, 7, 7, 5, 4, 1, {21, 42}, {3, 5}, {{1, 1}, {0, 0}}, false, false, true},
};

const Operation operation("inverted_bottleneck", [](Isa isa) {
  for (size_t i = 0; i < kCases.size(); ++i) {
    const std::string name = "inverted_bottleneck case " + std::to_string(i);
    run<float>(isa, kCases[i], name + ", float");
    run<double>(isa, kCases[i], name + ", double");
  }
});

}  // namespace
