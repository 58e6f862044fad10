#include <torch/csrc/stable/ops.h>

#include "../../csrc/binding/stream.h"
#include "../../csrc/binding/workspace.h"
#include "runtime.h"

// The emulator's side of csrc/binding/stream.cpp, and what tests say to it.
namespace cwkernels {

GpuCall::GpuCall(const char* operation, const Tensor& /*on*/)
    : operation_(operation), stream_(nullptr) {}

void GpuCall::check(int error) const {
  if (error == 0) error = emulator::synchronize();
  STD_TORCH_CHECK(error == 0, operation_, ": cudaError ", error, ": ", emulator::take_error());
}

// A GPU's tensors are torch's allocator's.
Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& sizes) {
  return torch::stable::new_empty(like, sizes);
}

}  // namespace cwkernels

#define CWK_EXPORTED extern "C" __attribute__((visibility("default")))

CWK_EXPORTED void cwk_emulator_configure(int capability, int processors, uint64_t seed) {
  cwkernels::emulator::configure({capability, processors, seed});
}

// Launches since the last configure.
CWK_EXPORTED int64_t cwk_emulator_launches() { return cwkernels::emulator::launches(); }
