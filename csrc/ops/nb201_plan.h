#pragma once
#include "nb201_cell.h"

// nb201_plan: what nb201_cell's kernels read of a choice that lies on the device. CUDA only.
// Shape comments: A architectures.
namespace cwkernels {

struct NB201PlanParams {
  const int32_t* selection;  // [A, 6, 2]: code and row of each edge
  int32_t* plan;             // [A, kCellPlanInts]
  int64_t architectures;     // A
  int64_t rows[kCellEdges];  // of each edge's banks; an edge with a row beyond has code none
  int64_t banks_per_edge;
};

// Launches on `stream`, a cudaStream_t. Returns the launch's cudaError_t.
int nb201_plan_cuda(const NB201PlanParams& params, void* stream);

}  // namespace cwkernels
