#include "update_statistics.cuh"

namespace cwkernels {

int update_statistics_cuda(const UpdateStatisticsParams& p, void* stream) {
  StatisticsLaunches<float> floats(p.momentum, stream);
  StatisticsLaunches<double> doubles(p.momentum, stream);
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

}  // namespace cwkernels
