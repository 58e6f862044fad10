#pragma once

// CPU kernels are compiled once per instruction set, each into a namespace of its own: CMake sets
// CWK_ISA to its name. Nothing in such a file may have external linkage outside that namespace
// (std templates included), or the linker could hand AVX-512 code to a machine without it. On other
// processors than x86-64 there is the baseline only.
#ifdef __x86_64__
#define CWK_DECLARE_CPU(declaration) \
  namespace cwkernels::baseline {    \
  declaration;                       \
  }                                  \
  namespace cwkernels::avx2 {        \
  declaration;                       \
  }                                  \
  namespace cwkernels::avx512 {      \
  declaration;                       \
  }
#else
#define CWK_DECLARE_CPU(declaration) \
  namespace cwkernels::baseline {    \
  declaration;                       \
  }
#endif

namespace cwkernels {

enum class Isa { baseline, avx2, avx512 };

}  // namespace cwkernels

// Calls the function of the instruction set in force, an Isa.
#ifdef __x86_64__
#define CWK_CALL_CPU(isa, function, ...)                                          \
  ((isa) == ::cwkernels::Isa::avx512 ? ::cwkernels::avx512::function(__VA_ARGS__) \
   : (isa) == ::cwkernels::Isa::avx2 ? ::cwkernels::avx2::function(__VA_ARGS__)   \
                                     : ::cwkernels::baseline::function(__VA_ARGS__))
#else
#define CWK_CALL_CPU(isa, function, ...) \
  (static_cast<void>(isa), ::cwkernels::baseline::function(__VA_ARGS__))
#endif
