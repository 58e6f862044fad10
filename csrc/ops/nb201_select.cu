#include "nb201_select.cuh"

namespace cwkernels {

int nb201_select_cuda(const NB201SelectParams& params, void* stream) {
  return launch(nb201_select_kernel, {}, select_threads(params.select.architectures),
                shared_bytes<SelectFault>(kSelectWarps), stream, params);
}

}  // namespace cwkernels
