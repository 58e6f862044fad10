#include "select.cuh"

namespace cwkernels {

int select_cuda(const SelectParams& params, void* stream) {
  return launch(select_kernel, {}, select_threads(params.architectures),
                shared_bytes<SelectFault>(kSelectWarps), stream, params);
}

}  // namespace cwkernels
