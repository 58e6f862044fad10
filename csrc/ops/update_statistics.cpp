#include "update_statistics.h"

#include <limits>
#include <optional>
#include <vector>

#include "../binding/checks.h"
#include "../binding/cpu.h"
#include "../binding/registration.h"
#include "../binding/stream.h"

namespace cwkernels {
namespace {

using torch::headeronly::ScalarType;
using Tensors = std::vector<Tensor>;

constexpr const char* kName = "update_statistics";

void check_entry(const char* list, size_t i, const Tensor& tensor, const Tensor& mean,
                 ScalarType dtype, const std::vector<int64_t>& shape) {
  bool fits = tensor.scalar_type() == dtype && tensor.dim() == static_cast<int64_t>(shape.size()) &&
              tensor.device() == mean.device();
  for (size_t d = 0; fits && d < shape.size(); ++d) {
    fits = tensor.size(static_cast<int64_t>(d)) == shape[d];
  }
  if (fits) return;
  std::string wanted = "the dtype of running_mean (of a counter: int64) on ";
  wanted.append(device_name(mean)).append(", ");
  for (const int64_t size : shape) wanted.append(std::to_string(size)).append(" ");
  CWK_CHECK(false, kName, entry(list, i), wanted, dtype_name(tensor) + (" " + describe(tensor)));
}

// Whether rows lie where only kernels read them; the dtype tells, as on the emulator all tensors
// lie on the CPU.
bool is_by_pointer(const Tensor& rows) { return rows.scalar_type() == ScalarType::Int; }

void check(const Tensors& mean, const Tensors& var, const Tensors& batches,
           const Tensors& statistics, const Tensor& rows, const std::vector<int64_t>& counts) {
  check_length(kName, "running_var", var.size(), "running_mean", mean.size());
  check_length(kName, "num_batches_tracked", batches.size(), "running_mean", mean.size());
  check_length(kName, "statistics", statistics.size(), "running_mean", mean.size());
  check_length(kName, "counts", counts.size(), "running_mean", mean.size());
  const bool by_value = rows.scalar_type() == ScalarType::Long && rows.is_cpu();
  const bool by_pointer =
      is_by_pointer(rows) && (mean.empty() || rows.device() == mean[0].device());
  CWK_CHECK((by_value || by_pointer) && rows.dim() == 2 &&
                rows.size(0) == static_cast<int64_t>(mean.size()),
            kName, "rows", "int64 [L, A] on the CPU, or for CUDA kernels int32 on their device",
            dtype_name(rows) + (" " + describe(rows)) + " on " + device_name(rows));
  for (size_t i = 0; i < mean.size(); ++i) {
    const auto dtype = mean[i].scalar_type();
    CWK_CHECK(mean[i].dim() == 2 && mean[i].device() == mean[0].device() &&
                  (dtype == ScalarType::Float || dtype == ScalarType::Double),
              kName, entry("running_mean", i),
              std::string("float32 or float64 [S, C] on ") + device_name(mean[0]),
              dtype_name(mean[i]) + (" " + describe(mean[i])));
    const int64_t sets = mean[i].size(0), channels = mean[i].size(1);
    check_entry("running_var", i, var[i], mean[i], dtype, {sets, channels});
    check_entry("num_batches_tracked", i, batches[i], mean[i], ScalarType::Long, {sets});
    check_entry("statistics", i, statistics[i], mean[i], dtype, {rows.size(1), 2, channels});
    CWK_CHECK(counts[i] >= 1, kName, entry("counts", i), "at least 1", counts[i]);
  }
}

void check_range(const int64_t* rows, int64_t architectures, const Tensors& mean) {
  for (size_t i = 0; i < mean.size(); ++i) {
    for (int64_t a = 0; a < architectures; ++a, ++rows) {
      CWK_CHECK(*rows >= -1 && *rows < mean[i].size(0), kName, entry("rows", i),
                "rows in [-1, " + std::to_string(mean[i].size(0)) + ")", *rows);
    }
  }
}

// Tensors as the kernel writes them, and back to where they lie if that has gaps.
class Written {
 public:
  explicit Written(const Tensors& tensors) : tensors_(tensors), dense_(tensors) {
    for (Tensor& tensor : dense_) {
      if (!tensor.is_contiguous()) tensor = torch::stable::contiguous(tensor);
    }
  }

  void* pointer(size_t i) { return dense_[i].mutable_data_ptr(); }

  void write_back() {
    for (size_t i = 0; i < dense_.size(); ++i) {
      if (!tensors_[i].is_contiguous()) torch::stable::copy_(tensors_[i], dense_[i]);
    }
  }

 private:
  Tensors tensors_, dense_;
};

// As it is if mean and variance of an architecture lie side by side; a batch norm that all
// architectures share is measured once and expanded.
Tensor side_by_side(const Tensor& statistics) {
  const bool dense = statistics.stride(2) == 1 && statistics.stride(1) == statistics.size(2);
  return dense ? statistics : torch::stable::contiguous(statistics);
}

// On either device: run(params) calls the kernel.
template <class Run>
void update(const Run& run, const Tensors& running_mean, const Tensors& running_var,
            const Tensors& batches, Tensors statistics, const Tensor& rows_any,
            const std::vector<int64_t>& counts, std::optional<double> momentum) {
  check(running_mean, running_var, batches, statistics, rows_any, counts);
  const Tensor rows = torch::stable::contiguous(rows_any);
  UpdateStatisticsParams params{};
  if (is_by_pointer(rows)) {
    params.device_rows = static_cast<const int32_t*>(rows.const_data_ptr());
  } else {
    params.rows = static_cast<const int64_t*>(rows.const_data_ptr());
    check_range(params.rows, rows.size(1), running_mean);
  }
  Written mean(running_mean), var(running_var), tracked(batches);
  std::vector<StatisticsTarget> targets(running_mean.size());
  for (size_t i = 0; i < targets.size(); ++i) {
    statistics[i] = side_by_side(statistics[i]);
    StatisticsTarget& target = targets[i];
    target.double_precision = running_mean[i].scalar_type() == ScalarType::Double;
    target.running_mean = mean.pointer(i);
    target.running_var = var.pointer(i);
    target.num_batches_tracked = static_cast<int64_t*>(tracked.pointer(i));
    target.statistics = statistics[i].const_data_ptr();
    target.statistics_stride = statistics[i].stride(0);
    target.sets = running_mean[i].size(0);
    target.channels = running_mean[i].size(1);
    target.count = counts[i];
  }
  params.targets = targets.data();
  params.norms = rows.size(0);
  params.architectures = rows.size(1);
  params.momentum = momentum.value_or(-1);
  run(params);
  for (Written* written : {&mean, &var, &tracked}) written->write_back();
}

void update_statistics_cpu(Tensors running_mean, Tensors running_var, Tensors batches,
                           Tensors statistics, const Tensor& rows, std::vector<int64_t> counts,
                           std::optional<double> momentum) {
  CWK_CHECK(!is_by_pointer(rows), kName, "rows", "int64 [L, A] on the CPU for CPU kernels",
            dtype_name(rows));
  const auto run = [](const UpdateStatisticsParams& params) {
    CWK_CALL_CPU(cpu_isa(), update_statistics, params);
  };
  update(run, running_mean, running_var, batches, statistics, rows, counts, momentum);
}

#if CWK_WITH_CUDA
// What the parameters of a CUDA launch have room for.
void check_room(const UpdateStatisticsParams& p) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  constexpr int64_t kMostSlots = std::numeric_limits<uint16_t>::max();
  for (int64_t i = 0; i < p.norms; ++i) {
    const StatisticsTarget& target = p.targets[i];
    CWK_CHECK(target.count <= kMost && target.statistics_stride <= kMost, kName,
              entry("counts", static_cast<size_t>(i)), "at most 2^31 - 1 values", target.count);
    CWK_CHECK(!p.device_rows || (target.sets <= kMostSlots && i <= kMostSlots), kName,
              entry("running_mean", static_cast<size_t>(i)),
              "at most 65,535 rows and batch norms with rows on the device", target.sets);
  }
}

void update_statistics_gpu(Tensors running_mean, Tensors running_var, Tensors batches,
                           Tensors statistics, const Tensor& rows, std::vector<int64_t> counts,
                           std::optional<double> momentum) {
  const GpuCall call(kName, running_mean.empty() ? rows : running_mean[0]);
  const auto run = [&](const UpdateStatisticsParams& params) {
    check_room(params);
    call.check(update_statistics_cuda(params, call.stream()));
  };
  update(run, running_mean, running_var, batches, statistics, rows, counts, momentum);
}
#endif

}  // namespace
}  // namespace cwkernels

CWK_SCHEMAS(m) {
  m.def(
      "update_statistics(Tensor(a!)[] running_mean, Tensor(b!)[] running_var, "
      "Tensor(c!)[] num_batches_tracked, Tensor[] statistics, Tensor rows, SymInt[] counts, "
      "float? momentum) -> ()");
}

CWK_CPU_FUNCTIONS(m) { m.impl("update_statistics", TORCH_BOX(&cwkernels::update_statistics_cpu)); }

#if CWK_WITH_CUDA
CWK_GPU_FUNCTIONS(m) { m.impl("update_statistics", TORCH_BOX(&cwkernels::update_statistics_gpu)); }
#endif
