#include "sgd.h"

#include <algorithm>
#include <vector>

#include "../binding/cpu.h"
#include "../binding/gpu_scratch.h"
#include "../binding/registration.h"
#include "../binding/sgd_item.h"
#include "../binding/stream.h"

namespace cwkernels {
namespace {

using torch::headeronly::ScalarType;
using Tensors = std::vector<Tensor>;
using Integers = std::vector<int64_t>;
using Numbers = SgdGroups::Numbers;

constexpr const char* kName = "sgd";

// `rows` is on the CPU, and says which rows there are.
void check_rows(size_t i, const SgdItem& item) {
  const Tensor& rows = item.rows;
  CWK_CHECK(rows.scalar_type() == ScalarType::Long && rows.is_cpu() &&
                (rows.dim() == 1 || (rows.dim() == 2 && rows.size(0) == 1)),
            kName, entry("rows", i), "int64 [U] on the CPU",
            dtype_name(rows) + (" " + describe(rows)));
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
  void add(const SgdItem& item) {
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

// On either device: run(params) calls the kernel.
template <class Run>
void step(const Run& run, Tensors weights, Tensors momenta, const Tensors& grads, Tensors rows,
          const Integers& sizes, const Numbers& lr, const Numbers& momentum,
          const Numbers& weight_decay) {
  check_length(kName, "momentum_buffers", momenta.size(), "weights", weights.size());
  check_length(kName, "grads", grads.size(), "weights", weights.size());
  check_length(kName, "rows", rows.size(), "weights", weights.size());
  const SgdGroups groups(kName, sizes, lr, momentum, weight_decay, weights.size());
  for (Tensor& own : rows) {
    if (!own.is_contiguous()) own = torch::stable::contiguous(own);
  }
  std::vector<SgdItem> items;
  items.reserve(weights.size());
  Moves moves;
  for (size_t i = 0; i < weights.size(); ++i) {
    const bool whole = rows[i].numel() == 1 && same_sizes(weights[i], grads[i]);
    items.push_back({weights[i], momenta[i], grads[i], rows[i], whole});
    check_item(kName, i, items[i], weights[0]);
    check_rows(i, items[i]);
    moves.add(items[i]);
  }
  SgdMemory memory;
  std::vector<SgdTarget> targets(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    SgdTarget& target = targets[i];
    target.double_precision = items[i].double_precision();
    target.shared_buffer = items[i].shared_buffer();
    target.row_size = items[i].row_size();
    target.options = groups.options(i);
    moves.point(i, target);
    memory.point(items[i], target);
  }
  SgdParams params{};
  params.targets = targets.data();
  params.target_count = static_cast<int64_t>(targets.size());
  run(params);
  memory.write_back();
}

void sgd_cpu(Tensors weights, Tensors momenta, Tensors grads, Tensors rows, Integers sizes,
             Numbers lr, Numbers momentum, Numbers weight_decay) {
  const auto run = [](SgdParams& params) {
    params.parallel = cpu_parallel();
    CWK_CALL_CPU(cpu_isa(), sgd, params);
  };
  step(run, weights, momenta, grads, rows, sizes, lr, momentum, weight_decay);
}

#if CWK_WITH_CUDA
void sgd_gpu(Tensors weights, Tensors momenta, Tensors grads, Tensors rows, Integers sizes,
             Numbers lr, Numbers momentum, Numbers weight_decay) {
  CWK_CHECK(!weights.empty(), kName, "weights", "at least one on the GPU", "none");
  const GpuCall call(kName, weights[0]);
  const auto run = [&](SgdParams& params) {
    const GpuScratch scratch(sgd_cuda_scratch(params), weights[0]);
    params.carry = scratch.data();
    call.check(sgd_cuda(params, call.stream()));
  };
  step(run, weights, momenta, grads, rows, sizes, lr, momentum, weight_decay);
}
#endif

}  // namespace
}  // namespace cwkernels

CWK_SCHEMAS(m) {
  m.def(
      "sgd(Tensor(a!)[] weights, Tensor(b!)[] momentum_buffers, Tensor[] grads, Tensor[] rows, "
      "int[] sizes, float[] lr, float[] momentum, float[] weight_decay) -> ()");
}

CWK_CPU_FUNCTIONS(m) { m.impl("sgd", TORCH_BOX(&cwkernels::sgd_cpu)); }

#if CWK_WITH_CUDA
CWK_GPU_FUNCTIONS(m) { m.impl("sgd", TORCH_BOX(&cwkernels::sgd_gpu)); }
#endif
