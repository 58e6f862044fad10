#include "inverted_bottleneck.cuh"

namespace cwkernels {

CudaScratch inverted_bottleneck_cuda_scratch(const InvertedBottleneckParams& params) {
  return params.double_precision ? BottleneckPlan<double>(params).scratch()
                                 : BottleneckPlan<float>(params).scratch();
}

int inverted_bottleneck_cuda(const InvertedBottleneckParams& params, void* stream) {
  return params.double_precision ? launch_bottleneck<double>(params, stream)
                                 : launch_bottleneck<float>(params, stream);
}

}  // namespace cwkernels
