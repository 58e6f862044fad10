#include "nb201_plan.cuh"

namespace cwkernels {

int nb201_plan_cuda(const NB201PlanParams& params, void* stream) {
  return launch(nb201_plan_kernel, {}, kPlanThreads, 0, stream, params);
}

}  // namespace cwkernels
