#include "update_statistics.cuh"

namespace cwkernels {
namespace {

int by_value(const UpdateStatisticsParams& p, void* stream) {
  StatisticsByValue<float> floats(p.momentum, stream);
  StatisticsByValue<double> doubles(p.momentum, stream);
  for (int64_t i = 0; i < p.norms; ++i) {
    const int64_t* rows = p.rows + i * p.architectures;
    if (p.targets[i].double_precision) {
      doubles.add(p.targets[i], rows, p.architectures);
    } else {
      floats.add(p.targets[i], rows, p.architectures);
    }
  }
  const int error = floats.run();
  return error != 0 ? error : doubles.run();
}

int by_pointer(const UpdateStatisticsParams& p, void* stream) {
  StatisticsByPointer<float> floats(p, stream);
  StatisticsByPointer<double> doubles(p, stream);
  for (int64_t i = 0; i < p.norms; ++i) {
    if (p.targets[i].double_precision) {
      doubles.add(p.targets[i], i);
    } else {
      floats.add(p.targets[i], i);
    }
  }
  const int error = floats.run();
  return error != 0 ? error : doubles.run();
}

}  // namespace

int update_statistics_cuda(const UpdateStatisticsParams& p, void* stream) {
  return p.device_rows ? by_pointer(p, stream) : by_value(p, stream);
}

}  // namespace cwkernels
