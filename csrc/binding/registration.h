#pragma once
#include <torch/csrc/stable/library.h>

// An operation says its schema and its functions by three blocks:
//
//   CWK_SCHEMAS(m) { m.def("your_op(…) -> Tensor"); }
//   CWK_CPU_FUNCTIONS(m) { m.impl("your_op", TORCH_BOX(&cwkernels::your_op_cpu)); }
//   #if CWK_WITH_CUDA
//   CWK_GPU_FUNCTIONS(m) { m.impl("your_op", TORCH_BOX(&cwkernels::your_op_gpu)); }
//   #endif
//
// A build for the emulator (CWK_EMULATED) registers what else runs on a GPU for tensors of the CPU,
// in a library of its own, and leaves out what runs on the CPU.
#if CWK_EMULATED
#define CWK_SCHEMAS(m) STABLE_TORCH_LIBRARY_FRAGMENT(cwkernels_emulated, m)
#define CWK_CPU_FUNCTIONS(m) \
  [[maybe_unused]] static void cwk_cpu_functions(torch::stable::detail::StableLibrary& m)
#define CWK_GPU_FUNCTIONS(m) STABLE_TORCH_LIBRARY_IMPL(cwkernels_emulated, CPU, m)
#else
#define CWK_SCHEMAS(m) STABLE_TORCH_LIBRARY_FRAGMENT(cwkernels, m)
#define CWK_CPU_FUNCTIONS(m) STABLE_TORCH_LIBRARY_IMPL(cwkernels, CPU, m)
#define CWK_GPU_FUNCTIONS(m) STABLE_TORCH_LIBRARY_IMPL(cwkernels, CUDA, m)
#endif
