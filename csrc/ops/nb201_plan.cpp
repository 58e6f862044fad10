#include "nb201_plan.h"

#include <vector>

#include "../binding/nb201_plan_call.h"
#include "../binding/registration.h"
#include "../binding/stream.h"

#if CWK_WITH_CUDA
namespace cwkernels {
namespace {

Tensor nb201_plan_gpu(const Tensor& selection, const std::vector<int64_t>& rows, int64_t per_edge) {
  const GpuCall call("nb201_plan", selection);
  const NB201PlanCall own = nb201_plan_call("nb201_plan", selection, rows, per_edge);
  if (own.params.architectures > 0) call.check(nb201_plan_cuda(own.params, call.stream()));
  return own.plan;
}

}  // namespace
}  // namespace cwkernels
#endif

CWK_SCHEMAS(m) { m.def("nb201_plan(Tensor selection, int[] rows, int per_edge) -> Tensor"); }

#if CWK_WITH_CUDA
CWK_GPU_FUNCTIONS(m) { m.impl("nb201_plan", TORCH_BOX(&cwkernels::nb201_plan_gpu)); }
#endif
