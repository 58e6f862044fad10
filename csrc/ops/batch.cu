#include "batch.cuh"

namespace cwkernels {

int batch_cuda(const BatchParams& params, void* stream) { return launch_batch(params, stream); }

}  // namespace cwkernels
