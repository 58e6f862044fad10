#pragma once
#include "../parts/cell_resolve.cuh"

namespace cwkernels {

constexpr int kPlanThreads = 128;

static __global__ void __launch_bounds__(kPlanThreads) nb201_plan_kernel(NB201PlanParams p) {
  wait_for_previous();
  plan_all(p);
}

}  // namespace cwkernels
