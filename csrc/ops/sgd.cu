#include "../parts/by_dtype.cuh"
#include "sgd.cuh"

namespace cwkernels {

CudaScratch sgd_cuda_scratch(const SgdParams& p) {
  CudaScratch scratch;
  for (int64_t i = 0; i < p.target_count; ++i) {
    const SgdTarget& target = p.targets[i];
    const int64_t bytes = target.row_size * (target.double_precision ? 8 : 4);
    for (int64_t u = 0; u < target.move_count; ++u) {
      if (target.moves[u].count > kSgdEntries && bytes > scratch.bytes) scratch.bytes = bytes;
    }
  }
  return scratch;
}

int sgd_cuda(const SgdParams& p, void* stream) {
  return launch_by_dtype(SgdLaunches<float>(p, stream), SgdLaunches<double>(p, stream), p.targets,
                         p.target_count,
                         [&](auto& launches, int64_t i) { launches.add(p.targets[i]); });
}

}  // namespace cwkernels
