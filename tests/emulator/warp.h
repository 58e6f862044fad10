#pragma once
#include "runtime.h"

namespace cwkernels::emulator {

// Does what a warp does together, other than sync_warp. brought[lane] is of the type that belongs
// to the act, nullptr for a lane that is not in the mask.
void act_together(Act act, unsigned mask, void* const (&brought)[32]);

}  // namespace cwkernels::emulator
