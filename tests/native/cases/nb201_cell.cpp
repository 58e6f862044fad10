#include "../../../csrc/ops/nb201_cell.h"

#include <set>

#include "../naive.h"

namespace {

using namespace native;
using namespace cwkernels;

constexpr int kSources[kCellEdges] = {0, 0, 1, 0, 1, 2};
constexpr int kTargets[kCellEdges] = {1, 2, 2, 3, 3, 3};
constexpr int64_t kSets = 3;

// The choices of each architecture by edge: 0 none, 1 skip, 2 conv 1 x 1, 3 conv 3 x 3, 4 pool.
// None of them leads to a dead edge that is not 0: dropping those is not the kernel's part.
struct Case {
  int64_t images, channels, height, width;
  std::vector<std::vector<int64_t>> choices;
  bool shared, projection, training, count_include_pad;
  bool winograd = false;
};

// An architecture's row in a bank: repeated for every third one.
int64_t row_of(size_t architecture, int edge) { return (architecture % 3 + edge) % kSets; }

bool is_convolution(const CellEdge& edge) {
  return edge.code == CellCode::conv_1x1 || edge.code == CellCode::conv_3x3;
}

// What the binding makes of the choices, as the contract describes it.
struct Plans {
  std::vector<CellPlan> plans;
  std::set<int64_t> rows[kCellEdges][kCellBanks];
  int64_t kept = 0;

  explicit Plans(const Case& c) {
    for (size_t a = 0; a < c.choices.size(); ++a) plans.push_back(plan(c, a));
    place_gradients();
  }

 private:
  CellPlan plan(const Case& c, size_t a) {
    CellPlan p{};
    for (int e = 0; e < kCellEdges; ++e) {
      CellEdge& edge = p.edges[e];
      edge.code = static_cast<CellCode>(c.choices[a][e]);
      edge.row = row_of(a, e);
      edge.bank = edge.code == CellCode::conv_1x1               ? 0
                  : edge.code == CellCode::conv_3x3             ? 1
                  : edge.code == CellCode::skip && c.projection ? 2
                                                                : -1;
      edge.raw = is_convolution(edge) ? kept++ : -1;
      if (edge.bank >= 0) rows[e][edge.bank].insert(edge.row);
    }
    find_origins(p);
    bool read[kCellNodes] = {};
    for (int e = 0; e < kCellEdges; ++e) {
      read[p.origins[kSources[e]]] |= p.edges[e].bank >= 0;
    }
    for (int n = 0; n < kCellNodes; ++n) p.nodes[n] = n > 0 && read[n] ? kept++ : -1;
    return p;
  }

  static void find_origins(CellPlan& p) {
    for (int n = 0; n < kCellNodes; ++n) p.origins[n] = n;
    for (int n = 1; n < kCellNodes; ++n) {
      std::vector<int> incoming;
      for (int e = 0; e < kCellEdges; ++e) {
        if (kTargets[e] == n && p.edges[e].code != CellCode::none) incoming.push_back(e);
      }
      if (incoming.size() != 1) continue;
      const CellEdge& edge = p.edges[incoming[0]];
      if (edge.code == CellCode::skip && edge.bank < 0) {
        p.origins[n] = p.origins[kSources[incoming[0]]];
      }
    }
  }

  void place_gradients() {
    std::set<int64_t> written[kCellEdges][kCellBanks];
    for (CellPlan& p : plans) {
      for (int e = 0; e < kCellEdges; ++e) {
        CellEdge& edge = p.edges[e];
        if (edge.bank < 0) continue;
        const std::set<int64_t>& own = rows[e][edge.bank];
        edge.slot = std::distance(own.begin(), own.find(edge.row));
        edge.again = !written[e][edge.bank].insert(edge.row).second;
      }
    }
  }
};

int64_t taps(int bank) { return bank == 1 ? 9 : 1; }

template <class T>
struct Inputs {
  Buffer<T> input, grad;
  Buffer<T> weights[kCellEdges][kCellBanks], mean[kCellEdges][2], var[kCellEdges][2];

  explicit Inputs(const Case& c) {
    const int64_t size = c.images * c.height * c.width * c.channels;
    const int64_t architectures = static_cast<int64_t>(c.choices.size());
    input = random_values<T>((c.shared ? 1 : architectures) * size, 1);
    grad = random_values<T>(architectures * size, 2);
    for (int e = 0; e < kCellEdges; ++e) {
      for (int b = 0; b < (c.projection ? 3 : 2); ++b) {
        const int64_t values = kSets * c.channels * c.channels * taps(b);
        weights[e][b] = random_values<T>(values, 10 + 3 * e + b);
      }
      for (int b = 0; b < 2; ++b) {
        mean[e][b] = random_values<T>(kSets * c.channels, 50 + 2 * e + b);
        var[e][b] = random_values<T>(kSets * c.channels, 70 + 2 * e + b);
        for (int64_t i = 0; i < var[e][b].size(); ++i) var[e][b][i] += T(1.5);
      }
    }
  }
};

template <class T>
Values slice(const Buffer<T>& buffer, int64_t index, int64_t size) {
  return Values(buffer.data() + index * size, buffer.data() + (index + 1) * size);
}

// One architecture's cell in plain loops.
template <class T>
class NaiveCell {
 public:
  NaiveCell(const Case& c, const Inputs<T>& in, const CellPlan& plan, int64_t a)
      : c_(c), in_(in), plan_(plan), shape_{1, c.images, c.height, c.width, c.channels} {
    nodes_[0] = slice(in.input, c.shared ? 0 : a, shape_.size());
    for (int n = 1; n < kCellNodes; ++n) nodes_[n].assign(shape_.size(), 0);
    for (int e = 0; e < kCellEdges; ++e) add(nodes_[kTargets[e]], forward(e));
  }

  const Values& output() const { return nodes_[3]; }
  const Shape& shape() const { return shape_; }
  const Values& statistics(int e) const { return norms_[e].statistics; }

  // The gradient of the input; that of each edge's weights in `weights`.
  Values backward(const Values& grad, Values (&weights)[kCellEdges]) const {
    Values grads[kCellNodes];
    for (Values& own : grads) own.assign(shape_.size(), 0);
    grads[3] = grad;
    for (int e = kCellEdges - 1; e >= 0; --e) {
      add(grads[kSources[e]], edge_backward(e, grads[kTargets[e]], weights[e]));
    }
    return grads[0];
  }

 private:
  Convolution convolution(int e) const {
    return {shape_, c_.channels, plan_.edges[e].code == CellCode::conv_3x3 ? 3 : 1, 1};
  }

  Values weight(int e) const {
    const CellEdge& edge = plan_.edges[e];
    return slice(in_.weights[e][edge.bank], edge.row, convolution(e).weights());
  }

  Values forward(int e) {
    const CellEdge& edge = plan_.edges[e];
    const Values& source = nodes_[kSources[e]];
    if (edge.code == CellCode::none) return Values(shape_.size());
    if (edge.code == CellCode::average_pool) {
      return pool_around(source, shape_, c_.count_include_pad);
    }
    if (edge.bank < 0) return source;
    if (!is_convolution(edge)) return convolution(e).forward(source, weight(e));
    raw_[e] = convolution(e).forward(rectify(source), weight(e));
    norms_[e].training = c_.training;
    norms_[e].statistics = measure(raw_[e], shape_);
    if (!c_.training) {
      norms_[e].statistics = slice(in_.mean[e][edge.bank], edge.row, c_.channels);
      const Values var = slice(in_.var[e][edge.bank], edge.row, c_.channels);
      norms_[e].statistics.insert(norms_[e].statistics.end(), var.begin(), var.end());
    }
    return normalise(raw_[e], shape_, norms_[e]);
  }

  Values edge_backward(int e, const Values& grad, Values& to_weight) const {
    const CellEdge& edge = plan_.edges[e];
    const Values& source = nodes_[kSources[e]];
    if (edge.code == CellCode::none) return Values(shape_.size());
    if (edge.code == CellCode::average_pool) {
      return pool_around_backward(grad, shape_, c_.count_include_pad);
    }
    if (edge.bank < 0) return grad;
    if (!is_convolution(edge)) {
      to_weight = convolution(e).weight_gradient(grad, source);
      return convolution(e).input_gradient(grad, weight(e));
    }
    const Values raw = normalise_backward(grad, raw_[e], shape_, norms_[e]).input;
    to_weight = convolution(e).weight_gradient(raw, rectify(source));
    return rectify_backward(convolution(e).input_gradient(raw, weight(e)), source);
  }

  const Case& c_;
  const Inputs<T>& in_;
  const CellPlan& plan_;
  Shape shape_;
  Values nodes_[kCellNodes], raw_[kCellEdges];
  Norm norms_[kCellEdges];
};

template <class T>
NB201CellParams params_of(const Case& c, const Inputs<T>& in, const Plans& plans,
                          const Parallel& parallel) {
  NB201CellParams p{};
  p.input = in.input.data();
  p.plans = plans.plans.data();
  for (int e = 0; e < kCellEdges; ++e) {
    for (int b = 0; b < (c.projection ? 3 : 2); ++b) p.weights[e][b] = in.weights[e][b].data();
    for (int b = 0; b < 2 && !c.training; ++b) {
      p.running_mean[e][b] = in.mean[e][b].data();
      p.running_var[e][b] = in.var[e][b].data();
    }
  }
  p.shared = c.shared;
  p.architectures = static_cast<int64_t>(c.choices.size());
  p.images = c.images;
  p.channels = c.channels;
  p.height = c.height;
  p.width = c.width;
  p.eps = 1e-5;
  p.training = c.training;
  p.count_include_pad = c.count_include_pad;
  p.winograd = c.winograd;
  p.double_precision = sizeof(T) == 8;
  p.parallel = parallel;
  return p;
}

// What a forward call gives; `kept` is exactly as large as the plans say.
template <class T>
struct Outputs {
  Buffer<T> output, statistics, own, kept;
};

template <class T>
Outputs<T> call_forward(Isa isa, const Case& c, const Inputs<T>& in, const Plans& plans,
                        const Parallel& parallel) {
  NB201CellParams p = params_of(c, in, plans, parallel);
  const int64_t image = c.images * c.height * c.width * c.channels;
  Outputs<T> out{Buffer<T>(in.grad.size()),
                 buffer_of<T>(Values(p.architectures * kCellEdges * 2 * c.channels)),
                 buffer_of<T>(Values(p.architectures * 2 * c.channels)),
                 Buffer<T>(plans.kept * image)};
  p.output = out.output.data();
  p.statistics = out.statistics.data();
  p.output_statistics = out.own.data();
  p.kept = out.kept.data();
  const Workspace workspace(CWK_CALL_CPU(isa, nb201_cell_workspace, p));
  p.workspace = workspace.data();
  CWK_CALL_CPU(isa, nb201_cell, p);
  return out;
}

// The gradient of the input, then those of all banks, or only the ones that were asked for.
template <class T>
Buffer<T> call_backward(Isa isa, const Case& c, const Inputs<T>& in, const Plans& plans,
                        const Parallel& parallel, bool of_weights) {
  const Outputs<T> forward = call_forward(isa, c, in, plans, parallel);
  NB201CellParams p = params_of(c, in, plans, parallel);
  const Buffer<T> to_input(in.input.size());
  std::vector<Buffer<T>> to_weights;
  to_weights.reserve(kCellEdges * kCellBanks);
  for (int e = 0; e < kCellEdges; ++e) {
    for (int b = 0; b < kCellBanks; ++b) {
      const int64_t rows = static_cast<int64_t>(plans.rows[e][b].size());
      if (rows == 0) continue;
      to_weights.emplace_back(rows * c.channels * c.channels * taps(b));
      p.grad_weights[e][b] = to_weights.back().data();
    }
  }
  p.grad_output = in.grad.data();
  p.grad_input = to_input.data();
  p.need_weights = true;
  p.statistics = forward.statistics.data();
  p.kept = forward.kept.data();
  const Workspace workspace(CWK_CALL_CPU(isa, nb201_cell_backward_workspace, p));
  p.workspace = workspace.data();
  CWK_CALL_CPU(isa, nb201_cell_backward, p);
  std::vector<const Buffer<T>*> parts;
  if (!of_weights) return joined<T>({&to_input});
  for (const Buffer<T>& own : to_weights) parts.push_back(&own);
  return joined<T>(parts);
}

// A chain of batch norms multiplies what a convolution's rounding leaves.
template <class T>
double tolerance_of(const Case& c) {
  if (sizeof(T) == 8) return 1e-11;
  return c.winograd ? 10 * kWinogradTolerance : 2e-4;
}

template <class T>
void run(Isa isa, const Case& c, const std::string& name) {
  const Plans plans(c);
  const Inputs<T> in(c);
  const double tolerance = tolerance_of<T>(c);
  const int64_t architectures = static_cast<int64_t>(c.choices.size());
  Values output, statistics, own, to_input(in.input.size());
  Values slots[kCellEdges][kCellBanks];
  for (int64_t a = 0; a < architectures; ++a) {
    const CellPlan& plan = plans.plans[a];
    const NaiveCell<T> cell(c, in, plan, a);
    const Values& result = cell.output();
    output.insert(output.end(), result.begin(), result.end());
    const Values measured = measure(result, cell.shape());
    own.insert(own.end(), measured.begin(), measured.end());
    Values weights[kCellEdges];
    const Values grad = cell.backward(slice(in.grad, a, cell.shape().size()), weights);
    for (size_t i = 0; i < grad.size(); ++i) {
      to_input[(c.shared ? 0 : a) * grad.size() + i] += grad[i];
    }
    for (int e = 0; e < kCellEdges; ++e) {
      Values both = cell.statistics(e);
      both.resize(2 * c.channels);
      statistics.insert(statistics.end(), both.begin(), both.end());
      const CellEdge& edge = plan.edges[e];
      if (edge.bank < 0) continue;
      Values& all = slots[e][edge.bank];
      all.resize(plans.rows[e][edge.bank].size() * weights[e].size());
      for (size_t i = 0; i < weights[e].size(); ++i) {
        all[edge.slot * weights[e].size() + i] += weights[e][i];
      }
    }
  }
  Values to_weights;
  for (const auto& edge : slots) {
    for (const Values& bank : edge) to_weights.insert(to_weights.end(), bank.begin(), bank.end());
  }
  const auto forward = [&](const Parallel& parallel) {
    return call_forward(isa, c, in, plans, parallel);
  };
  const auto check_part = [&](const char* part, const Values& wanted, const auto& get) {
    check<T>(name + part, wanted, get, tolerance);
  };
  check_part(", output", output, [&](const Parallel& p) { return forward(p).output; });
  if (c.training) {
    check_part(", statistics", statistics,
               [&](const Parallel& p) { return forward(p).statistics; });
    check_part(", output statistics", own, [&](const Parallel& p) { return forward(p).own; });
  }
  check_part(", input gradient", to_input,
             [&](const Parallel& p) { return call_backward(isa, c, in, plans, p, false); });
  check_part(", weight gradients", to_weights,
             [&](const Parallel& p) { return call_backward(isa, c, in, plans, p, true); });
}

const std::vector<Case> kCases = {
    // images, channels, height, width, choices; shared, projection, training, count_include_pad
    {2, 16, 6, 5, {{3, 2, 3, 4, 2, 1}}, false, false, true, false},
    {1, 5, 5, 7, {{3, 3, 3, 3, 3, 3}}, false, false, true, true},
    {2, 19, 4, 4, {{2, 3, 4, 1, 3, 2}, {1, 0, 3, 3, 0, 1}}, false, true, true, false},
    {2,
     8,
     5,
     4,
     {{3, 2, 1, 0, 3, 2}, {2, 2, 3, 1, 4, 3}, {1, 4, 2, 3, 2, 2}},
     false,
     false,
     false,
     false},
    {1,
     6,
     6,
     6,
     {{3, 2, 3, 2, 3, 2}, {1, 1, 1, 1, 1, 1}, {4, 3, 2, 1, 2, 3}, {3, 2, 3, 2, 3, 2}},
     true,
     false,
     true,
     false},
    {2, 16, 8, 8, {{3, 3, 3, 3, 3, 3}, {3, 2, 3, 1, 3, 4}}, false, false, true, false, true},
    {3, 32, 7, 9, {{3, 3, 3, 3, 3, 3}}, false, false, true, false, true},
    {1, 16, 20, 18, {{0, 3, 0, 0, 0, 3}, {0, 0, 0, 3, 0, 0}}, true, false, false, true, true},
};

const Operation operation("nb201_cell", [](Isa isa) {
  for (size_t i = 0; i < kCases.size(); ++i) {
    const std::string name = "nb201_cell case " + std::to_string(i);
    run<float>(isa, kCases[i], name + ", float");
    run<double>(isa, kCases[i], name + ", double");
  }
});

}  // namespace
