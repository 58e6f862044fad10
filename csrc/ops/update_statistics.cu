#include "../parts/by_dtype.cuh"
#include "update_statistics.cuh"

namespace cwkernels {
int update_statistics_cuda(const UpdateStatisticsParams& p, void* stream) {
  if (p.device_rows) {
    return launch_by_dtype(StatisticsByPointer<float>(p, stream),
                           StatisticsByPointer<double>(p, stream), p.targets, p.norms,
                           [&](auto& launches, int64_t i) { launches.add(p.targets[i], i); });
  }
  return launch_by_dtype(
      StatisticsByValue<float>(p.momentum, stream), StatisticsByValue<double>(p.momentum, stream),
      p.targets, p.norms, [&](auto& launches, int64_t i) {
        launches.add(p.targets[i], p.rows + i * p.architectures, p.architectures);
      });
}

}  // namespace cwkernels
