# CPU kernels: torch-free, once per instruction set. parts/isa.h knows which there are. Sets:
#   cpu_sources  the files of the kernels
#   cpu_objects  what they compile to, all instruction sets
#   cpu_isas     the instruction sets, joined by commas
file(GLOB cpu_sources CONFIGURE_DEPENDS csrc/ops/*_cpu.cpp)
set(cpu_optimization -O3)
if(CWKERNELS_SANITIZE STREQUAL "thread")
  set(cpu_optimization -O1)
elseif(CWKERNELS_SANITIZE)
  # Checks of addresses take the optimizer minutes, and it drops accesses that are to be checked.
  set(cpu_optimization -O0)
endif()
set(cpu_isas)
set(cpu_objects)
macro(add_cpu_kernels isa)
  add_library(cpu_${isa} OBJECT ${cpu_sources})
  target_compile_definitions(cpu_${isa} PRIVATE CWK_ISA=${isa})
  target_compile_options(cpu_${isa} PRIVATE ${cpu_optimization} ${ARGN})
  list(APPEND cpu_isas ${isa})
  list(APPEND cpu_objects $<TARGET_OBJECTS:cpu_${isa}>)
endmacro()
add_cpu_kernels(baseline)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  add_cpu_kernels(avx2 -mavx2 -mfma)
  add_cpu_kernels(avx512 -mavx2 -mfma -mavx512f -mavx512bw -mavx512dq -mavx512vl
                  -mprefer-vector-width=512)
endif()
string(JOIN "," cpu_isas ${cpu_isas})
message(STATUS "cwkernels: CPU kernels: ${cpu_isas} (${CMAKE_SYSTEM_PROCESSOR})")
