#pragma once
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "../ops/nb201_plan.h"
#include "checks.h"

// What nb201_plan and nb201_select check of their arguments, and make of them.
namespace cwkernels {

// The parameters of a call, and what it returns, which they point to.
struct NB201PlanCall {
  NB201PlanParams params;
  Tensor plan;
};

inline NB201PlanCall nb201_plan_call(const char* operation, const Tensor& selection,
                                     const std::vector<int64_t>& rows, int64_t per_edge) {
  using torch::headeronly::ScalarType;
  CWK_CHECK(selection.dim() == 3 && selection.size(1) == kCellEdges && selection.size(2) == 2 &&
                selection.scalar_type() == ScalarType::Int && selection.is_contiguous(),
            operation, "selection", "contiguous int32 [A, 6, 2]",
            dtype_name(selection) + (" " + describe(selection)));
  CWK_CHECK(rows.size() == kCellEdges, operation, "rows", "one for each of 6 edges", rows.size());
  CWK_CHECK(per_edge == kCellBanks || per_edge == kCellBanks - 1, operation, "per_edge", "2 or 3",
            per_edge);
  const int64_t architectures = selection.size(0);
  const Tensor plan =
      torch::stable::new_empty(selection, std::vector<int64_t>{architectures, kCellPlanInts});
  NB201PlanParams params{};
  params.selection = static_cast<const int32_t*>(selection.const_data_ptr());
  params.plan = static_cast<int32_t*>(plan.mutable_data_ptr());
  params.architectures = architectures;
  for (int e = 0; e < kCellEdges; ++e) params.rows[e] = rows[e];
  params.banks_per_edge = per_edge;
  return {params, plan};
}

}  // namespace cwkernels
