#pragma once
#include <torch/csrc/stable/ops.h>

#include "../parts/isa.h"
#include "../parts/parallel.h"
#include "workspace.h"

namespace cwkernels {

// The instruction set in force: the best that this machine runs, or the one that
// CWKERNELS_CPU_ISA or the operation set_cpu_isa names.
Isa cpu_isa();

// torch's own thread pool, as the torch-free kernels take it.
inline Parallel cpu_parallel() {
  return {static_cast<int64_t>(torch::stable::get_num_threads()),
          [](int64_t count, ParallelBody body, void* context) {
            torch::stable::parallel_for(
                0, count, 1, [&](int64_t begin, int64_t end) { body(begin, end, context); });
          }};
}

}  // namespace cwkernels

// Runs a CPU kernel that has scratch: of the instruction set in force, in `params.workspace`.
#define CWK_RUN_CPU(function, params)                                                        \
  do {                                                                                       \
    const ::cwkernels::Isa isa = ::cwkernels::cpu_isa();                                     \
    const ::cwkernels::Workspace workspace(CWK_CALL_CPU(isa, function##_workspace, params)); \
    (params).workspace = workspace.data();                                                   \
    CWK_CALL_CPU(isa, function, params);                                                     \
  } while (false)
