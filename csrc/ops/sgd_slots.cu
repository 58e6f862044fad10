#include "sgd_slots.cuh"

namespace cwkernels {

int sgd_slots_cuda(const SgdSlotsParams& p, void* stream) {
  SgdSlotsLaunches<float> floats(p, stream);
  SgdSlotsLaunches<double> doubles(p, stream);
  for (int64_t i = 0; i < p.target_count; ++i) {
    if (p.targets[i].double_precision) {
      doubles.add(p.targets[i]);
    } else {
      floats.add(p.targets[i]);
    }
  }
  const int error = floats.run();
  return error != 0 ? error : doubles.run();
}

}  // namespace cwkernels
