#include "inverted_bottleneck.cuh"

namespace cwkernels {

CudaScratch inverted_bottleneck_cuda_scratch(const InvertedBottleneckParams& params) {
  if (params.double_precision) return BottleneckPlan<double>(params).scratch();
  return params.bf16_images ? BottleneckPlan<bf16>(params).scratch()
                            : BottleneckPlan<float>(params).scratch();
}

int inverted_bottleneck_cuda(const InvertedBottleneckParams& params, void* stream) {
  if (params.double_precision) return launch_bottleneck<double>(params, stream);
  return params.bf16_images ? launch_bottleneck<bf16>(params, stream)
                            : launch_bottleneck<float>(params, stream);
}

}  // namespace cwkernels
