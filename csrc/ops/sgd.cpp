#include "sgd.h"

#include <algorithm>
#include <vector>

#include "../binding/checks.h"
#include "../binding/cpu.h"
#include "../binding/gpu_scratch.h"
#include "../binding/registration.h"
#include "../binding/stream.h"

namespace cwkernels {
namespace {

using torch::headeronly::ScalarType;
using Tensors = std::vector<Tensor>;

constexpr const char* kName = "sgd";

std::string entry(const char* list, size_t i) {
  return std::string(list) + "[" + std::to_string(i) + "]";
}

// Whether two tensors agree in sizes from dimension `first` on.
bool same_sizes(const Tensor& one, const Tensor& other, int64_t first = 0) {
  if (one.dim() != other.dim()) return false;
  for (int64_t d = first; d < one.dim(); ++d) {
    if (one.size(d) != other.size(d)) return false;
  }
  return true;
}

// One tensor to move, of which `rows` says which rows; or all of it, as the one row that there is.
struct Item {
  const Tensor &weight, &momentum, &grad, &rows;
  bool whole;

  Item(const Tensor& w, const Tensor& m, const Tensor& g, const Tensor& r)
      : weight(w), momentum(m), grad(g), rows(r), whole(r.numel() == 1 && same_sizes(w, g)) {}

  int64_t sets() const { return whole ? 1 : weight.size(0); }
  int64_t entries() const { return whole ? 1 : grad.size(0); }
  int64_t row_size() const { return sets() == 0 ? 0 : weight.numel() / sets(); }
  bool shared_buffer() const { return !whole && momentum.size(0) != weight.size(0); }
  const int64_t* row_values() const { return static_cast<const int64_t*>(rows.const_data_ptr()); }
};

void check_like(const char* list, size_t i, const Tensor& tensor, const Tensor& weight, bool fits) {
  CWK_CHECK(fits, kName, entry(list, i), "rows of the weight's shape " + describe(weight),
            describe(tensor));
  CWK_CHECK(tensor.scalar_type() == weight.scalar_type() && tensor.device() == weight.device(),
            kName, entry(list, i),
            dtype_name(weight) + std::string(" on ").append(device_name(weight)),
            dtype_name(tensor));
}

void check_item(size_t i, const Item& item, const Tensor& first) {
  const Tensor &weight = item.weight, &momentum = item.momentum, &rows = item.rows;
  const auto dtype = weight.scalar_type();
  CWK_CHECK(weight.device() == first.device() &&
                (dtype == ScalarType::Float || dtype == ScalarType::Double),
            kName, entry("weights", i), std::string("float32 or float64 on ") + device_name(first),
            dtype_name(weight));
  CWK_CHECK(rows.scalar_type() == ScalarType::Long && rows.is_cpu() &&
                (rows.dim() == 1 || (rows.dim() == 2 && rows.size(0) == 1)),
            kName, entry("rows", i), "int64 [U] on the CPU",
            dtype_name(rows) + (" " + describe(rows)));
  check_like("grads", i, item.grad, weight,
             item.whole || (weight.dim() > 0 && same_sizes(item.grad, weight, 1) &&
                            item.grad.size(0) <= rows.numel()));
  check_like("momentum_buffers", i, momentum, weight,
             same_sizes(momentum, weight) ||
                 (!item.whole && same_sizes(momentum, weight, 1) && momentum.size(0) == 1));
  const int64_t* values = item.row_values();
  for (int64_t u = 0; u < rows.numel(); ++u) {
    CWK_CHECK(values[u] >= 0 && values[u] < item.sets(), kName, entry("rows", i),
              "rows in [0, " + std::to_string(item.sets()) + ")", values[u]);
  }
}

// What rows are to be moved and which gradients each sums. Rows come in ascending order, the
// gradients of one in the order in which they were given.
class Moves {
 public:
  void add(const Item& item) {
    starts_.push_back({moves_.size(), entries_.size()});
    const int64_t* rows = item.row_values();
    const int64_t count = item.rows.numel(), given = item.entries();
    order_.resize(static_cast<size_t>(count));
    for (int64_t u = 0; u < count; ++u) order_[static_cast<size_t>(u)] = u;
    if (!std::is_sorted(rows, rows + count)) {
      std::stable_sort(order_.begin(), order_.end(),
                       [&](int64_t one, int64_t other) { return rows[one] < rows[other]; });
    }
    const auto begin = static_cast<int64_t>(entries_.size());
    for (size_t k = 0; k < order_.size(); ++k) {
      const int64_t u = order_[k];
      if (k == 0 || rows[u] != moves_.back().row) {
        moves_.push_back({rows[u], static_cast<int64_t>(entries_.size()) - begin, 0});
      }
      if (u >= given) continue;  // a row without a gradient: it decays and coasts
      entries_.push_back(u);
      ++moves_.back().count;
    }
  }

  // Once all were added, as their arrays move while they grow.
  void point(size_t i, SgdTarget& target) const {
    const size_t end = i + 1 < starts_.size() ? starts_[i + 1].move : moves_.size();
    target.moves = moves_.data() + starts_[i].move;
    target.entries = entries_.data() + starts_[i].entry;
    target.move_count = static_cast<int64_t>(end - starts_[i].move);
  }

 private:
  struct Start {
    size_t move, entry;
  };
  std::vector<Start> starts_;
  std::vector<SgdRow> moves_;
  std::vector<int64_t> entries_, order_;
};

// Whether all elements lie side by side, in whatever order of dimensions.
bool is_dense(const Tensor& tensor) {
  int64_t expected = 1;
  for (int64_t found = 0; found < tensor.dim();) {
    const int64_t before = found;
    for (int64_t d = 0; d < tensor.dim(); ++d) {
      if (tensor.size(d) > 1 && tensor.stride(d) == expected) {
        expected *= tensor.size(d);
        ++found;
      }
    }
    if (found == before) break;
  }
  return expected == tensor.numel();
}

bool same_strides(const Tensor& one, const Tensor& other) {
  for (int64_t d = 0; d < one.dim(); ++d) {
    if (one.size(d) > 1 && one.stride(d) != other.stride(d)) return false;
  }
  return true;
}

// Whether element i of one lies beside element i + 1 as it does in the others.
bool lies_alike(const Item& item) {
  if (item.weight.is_contiguous() && item.momentum.is_contiguous() && item.grad.is_contiguous()) {
    return true;
  }
  return item.whole && is_dense(item.weight) && same_strides(item.weight, item.momentum) &&
         same_strides(item.weight, item.grad);
}

// What lies otherwise, a parameter in another memory format than its gradient, is moved as a copy.
struct Copied {
  Tensor weight, momentum, grad;
  size_t item;
};

// On either device: run(params) calls the kernel.
template <class Run>
void step(const Run& run, Tensors weights, Tensors momenta, const Tensors& grads, Tensors rows,
          double lr, double momentum, double weight_decay) {
  for (const auto& [list, length] :
       {std::pair<const char*, size_t>{"momentum_buffers", momenta.size()},
        {"grads", grads.size()},
        {"rows", rows.size()}}) {
    CWK_CHECK(length == weights.size(), kName, list, "as many entries as weights", length);
  }
  for (Tensor& own : rows) {
    if (!own.is_contiguous()) own = torch::stable::contiguous(own);
  }
  std::vector<Item> items;
  items.reserve(weights.size());
  Moves moves;
  for (size_t i = 0; i < weights.size(); ++i) {
    items.emplace_back(weights[i], momenta[i], grads[i], rows[i]);
    check_item(i, items[i], weights[0]);
    moves.add(items[i]);
  }
  std::vector<Copied> copies;
  std::vector<SgdTarget> targets(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    const Item& item = items[i];
    SgdTarget& target = targets[i];
    target.double_precision = item.weight.scalar_type() == ScalarType::Double;
    target.shared_buffer = item.shared_buffer();
    target.row_size = item.row_size();
    moves.point(i, target);
    if (lies_alike(item)) {
      target.weight = item.weight.mutable_data_ptr();
      target.momentum = item.momentum.mutable_data_ptr();
      target.grad = item.grad.const_data_ptr();
    } else {
      copies.push_back({torch::stable::contiguous(item.weight),
                        torch::stable::contiguous(item.momentum),
                        torch::stable::contiguous(item.grad), i});
      target.weight = copies.back().weight.mutable_data_ptr();
      target.momentum = copies.back().momentum.mutable_data_ptr();
      target.grad = copies.back().grad.const_data_ptr();
    }
  }
  SgdParams params{};
  params.targets = targets.data();
  params.target_count = static_cast<int64_t>(targets.size());
  params.lr = lr;
  params.momentum = momentum;
  params.weight_decay = weight_decay;
  run(params);
  for (const Copied& copied : copies) {
    torch::stable::copy_(weights[copied.item], copied.weight);
    torch::stable::copy_(momenta[copied.item], copied.momentum);
  }
}

void sgd_cpu(Tensors weights, Tensors momenta, Tensors grads, Tensors rows, double lr,
             double momentum, double weight_decay) {
  const auto run = [](SgdParams& params) {
    params.parallel = cpu_parallel();
    CWK_CALL_CPU(cpu_isa(), sgd, params);
  };
  step(run, weights, momenta, grads, rows, lr, momentum, weight_decay);
}

#if CWK_WITH_CUDA
void sgd_gpu(Tensors weights, Tensors momenta, Tensors grads, Tensors rows, double lr,
             double momentum, double weight_decay) {
  CWK_CHECK(!weights.empty(), kName, "weights", "at least one on the GPU", "none");
  const GpuCall call(kName, weights[0]);
  const auto run = [&](SgdParams& params) {
    const GpuScratch scratch(sgd_cuda_scratch(params), weights[0]);
    params.carry = scratch.data();
    call.check(sgd_cuda(params, call.stream()));
  };
  step(run, weights, momenta, grads, rows, lr, momentum, weight_decay);
}
#endif

}  // namespace
}  // namespace cwkernels

CWK_SCHEMAS(m) {
  m.def(
      "sgd(Tensor(a!)[] weights, Tensor(b!)[] momentum_buffers, Tensor[] grads, Tensor[] rows, "
      "float lr, float momentum, float weight_decay) -> ()");
}

CWK_CPU_FUNCTIONS(m) { m.impl("sgd", TORCH_BOX(&cwkernels::sgd_cpu)); }

#if CWK_WITH_CUDA
CWK_GPU_FUNCTIONS(m) { m.impl("sgd", TORCH_BOX(&cwkernels::sgd_gpu)); }
#endif
