#pragma once
#include "isa.h"

// Which instruction sets this machine runs. Not for files that are compiled once per instruction
// set: the linker keeps one copy of an inline function.
#ifdef CWK_ISA
#error "machine.h is for the code that chooses an instruction set"
#endif

namespace cwkernels {

constexpr const char* kIsaNames[] = {"baseline", "avx2", "avx512"};

inline bool supported(Isa isa) {
  if (isa == Isa::baseline) return true;
#ifdef __x86_64__
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

}  // namespace cwkernels
