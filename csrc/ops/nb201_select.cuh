#pragma once
#include "../parts/cell_resolve.cuh"
#include "../parts/select.cuh"
#include "nb201_select.h"

// Both in one block, the second after the first: a launch less in each step. The plan takes 61 to
// 64 registers, no more than the 32 warps of select's block leave a thread.
namespace cwkernels {

static_assert(kSelectWarps * kWarp * 64 <= 65536 && sizeof(NB201SelectParams) <= 4096);

__global__ void __launch_bounds__(kSelectWarps* kWarp) nb201_select_kernel(NB201SelectParams p) {
  wait_for_previous();
  allow_next();
  Shared shared;
  select_all(p.select, shared.take<SelectFault>(kSelectWarps));
  plan_all(p.plan);
}

}  // namespace cwkernels
