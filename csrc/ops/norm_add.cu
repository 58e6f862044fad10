#include "norm_add.cuh"

namespace cwkernels {

CudaScratch norm_add_cuda_scratch(const NormAddParams& params) {
  return with_norm_add_plan(params, [](const auto& plan) { return plan.scratch(); });
}

int norm_add_cuda(const NormAddParams& params, void* stream) {
  return with_norm_add_plan(params,
                            [stream](const auto& plan) { return launch_norm_add(plan, stream); });
}

}  // namespace cwkernels
