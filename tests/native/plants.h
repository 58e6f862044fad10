#pragma once
#include <string_view>

#include "../../csrc/parts/isa.h"

// Deliberate bugs, each in the kernels' own code, that prove a sanitizer alive and the comparison
// real. Every one must make the driver fail.
namespace native {

// overrun: an output one element short. overread: an input one element short. overflow: a size at
// the end of int64. race: two threads write one output. wrong: a task is left out. Gives the exit
// code of a driver that has seen nothing, unless it has; 2 for an unknown name.
int run_plant(cwkernels::Isa isa, std::string_view name);

}  // namespace native
