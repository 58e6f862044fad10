#include "nb201_plan.h"

#include <torch/csrc/stable/ops.h>

#include <string>
#include <vector>

#include "../binding/checks.h"
#include "../binding/registration.h"
#include "../binding/stream.h"

namespace cwkernels {
namespace {

using torch::headeronly::ScalarType;

#if CWK_WITH_CUDA
Tensor nb201_plan_gpu(const Tensor& selection, const std::vector<int64_t>& rows, int64_t per_edge) {
  const GpuCall call("nb201_plan", selection);
  CWK_CHECK(selection.dim() == 3 && selection.size(1) == kCellEdges && selection.size(2) == 2 &&
                selection.scalar_type() == ScalarType::Int && selection.is_contiguous(),
            "nb201_plan", "selection", "contiguous int32 [A, 6, 2]",
            dtype_name(selection) + (" " + describe(selection)));
  CWK_CHECK(rows.size() == kCellEdges, "nb201_plan", "rows", "one for each of 6 edges",
            rows.size());
  CWK_CHECK(per_edge == kCellBanks || per_edge == kCellBanks - 1, "nb201_plan", "per_edge",
            "2 or 3", per_edge);
  const int64_t architectures = selection.size(0);
  Tensor plan =
      torch::stable::new_empty(selection, std::vector<int64_t>{architectures, kCellPlanInts});
  NB201PlanParams params{};
  params.selection = static_cast<const int32_t*>(selection.const_data_ptr());
  params.plan = static_cast<int32_t*>(plan.mutable_data_ptr());
  params.architectures = architectures;
  for (int e = 0; e < kCellEdges; ++e) params.rows[e] = rows[e];
  params.banks_per_edge = per_edge;
  if (architectures > 0) call.check(nb201_plan_cuda(params, call.stream()));
  return plan;
}
#endif

}  // namespace
}  // namespace cwkernels

CWK_SCHEMAS(m) { m.def("nb201_plan(Tensor selection, int[] rows, int per_edge) -> Tensor"); }

#if CWK_WITH_CUDA
CWK_GPU_FUNCTIONS(m) { m.impl("nb201_plan", TORCH_BOX(&cwkernels::nb201_plan_gpu)); }
#endif
