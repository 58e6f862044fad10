#pragma once
#include "../parts/select.cuh"

namespace cwkernels {

__global__ void __launch_bounds__(kSelectWarps* kWarp) select_kernel(SelectParams p) {
  wait_for_previous();
  allow_next();
  Shared shared;
  select_all(p, shared.take<SelectFault>(kSelectWarps));
}

}  // namespace cwkernels
