#include "../parts/by_dtype.cuh"
#include "sgd_slots.cuh"

namespace cwkernels {

int sgd_slots_cuda(const SgdSlotsParams& p, void* stream) {
  return launch_by_dtype(SgdSlotsLaunches<float>(stream), SgdSlotsLaunches<double>(stream),
                         p.targets, p.target_count,
                         [&](auto& launches, int64_t i) { launches.add(p.targets[i]); });
}

}  // namespace cwkernels
