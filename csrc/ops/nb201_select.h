#pragma once
#include "nb201_plan.h"
#include "select.h"

// nb201_select: select, and nb201_plan of what it selects. CUDA only.
namespace cwkernels {

struct NB201SelectParams {
  SelectParams select;
  NB201PlanParams plan;  // of what `select` writes
};

// Launches on `stream`, a cudaStream_t. Returns the launch's cudaError_t.
int nb201_select_cuda(const NB201SelectParams& params, void* stream);

}  // namespace cwkernels
