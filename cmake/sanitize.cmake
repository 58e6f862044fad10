# The CPU kernels and a torch-free driver, tests/native, both with sanitizers: `make sanitize`.
#
# Null and misaligned accesses fault without a check of their own; those two, and address checks that
# are not calls, double the time to compile, which is minutes.
set(sanitizers -fsanitize=${CWKERNELS_SANITIZE} -fno-sanitize-recover=all
               -fno-sanitize=null,alignment)
set(instrumented ${sanitizers} -g1 -fno-omit-frame-pointer -DCWK_FLATTEN=)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  list(APPEND instrumented --param=asan-instrumentation-with-call-threshold=0)
endif()

include(CheckCXXSourceCompiles)
set(CMAKE_REQUIRED_FLAGS -fsanitize=${CWKERNELS_SANITIZE})
check_cxx_source_compiles("int main() { return 0; }" CWK_HAS_SANITIZERS)
if(NOT CWK_HAS_SANITIZERS)
  message(FATAL_ERROR "cwkernels: ${CMAKE_CXX_COMPILER} cannot link -fsanitize=${CWKERNELS_SANITIZE}: "
                      "its runtimes (libasan, libubsan, libtsan) must be installed")
endif()

find_package(Threads REQUIRED)
file(GLOB driver_sources CONFIGURE_DEPENDS tests/native/*.cpp tests/native/cases/*.cpp)
add_executable(driver ${driver_sources} ${cpu_objects})
target_compile_options(driver PRIVATE -O1)
target_link_options(driver PRIVATE ${sanitizers})
target_link_libraries(driver PRIVATE Threads::Threads)
foreach(target driver cpu_baseline cpu_avx2 cpu_avx512)
  if(TARGET ${target})
    target_compile_options(${target} PRIVATE ${instrumented})
  endif()
endforeach()
