#include "select.cuh"

namespace cwkernels {

int select_cuda(const SelectParams& params, void* stream) {
  const int64_t warps = params.architectures < kSelectWarps ? params.architectures : kSelectWarps;
  return launch(select_kernel, {}, static_cast<int>(warps) * kWarp,
                shared_bytes<SelectFault>(kSelectWarps), stream, params);
}

}  // namespace cwkernels
