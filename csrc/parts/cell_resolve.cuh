#pragma once
#include "../ops/nb201_plan.h"
#include "cell_choice.cuh"

namespace cwkernels {

// Code and row of each edge. What is out of range is no operation, so it reads no memory.
__device__ inline CellPlan chosen_plan(const NB201PlanParams& p, int64_t a) {
  CellPlan plan{};
  for (int e = 0; e < kCellEdges; ++e) {
    const int32_t code = load_global(p.selection + (a * kCellEdges + e) * 2);
    const int32_t row = load_global(p.selection + (a * kCellEdges + e) * 2 + 1);
    const bool valid = code >= 0 && code <= static_cast<int32_t>(CellCode::average_pool) &&
                       row >= 0 && row < p.rows[e];
    plan.edges[e].code = valid ? static_cast<CellCode>(code) : CellCode::none;
    plan.edges[e].row = valid ? row : 0;
  }
  complete_plan(plan, p.banks_per_edge, 0);
  return plan;
}

// Architecture a of a call has the same number of places in each mode, one run behind the other's:
// rows of `kept`, or scratch of its slot in a launch.
__device__ inline CellArchitecture placed(const CellPlan& plan, CellMode mode, int64_t a) {
  CellArchitecture own = cell_architecture(plan, mode);
  const bool kept = mode == CellMode::kept;
  const auto begin = static_cast<int32_t>((kept ? a : a % kCellMost) * cell_places(mode));
  int32_t count = 0;
  const auto place = [&](int32_t& at) {
    if (at == kNowhere) return;
    at = kept ? begin + count : scratch_place(begin + count);
    ++count;
  };
  for (CellChoice& edge : own.edges) place(edge.raw);
  for (int32_t& node : own.nodes) place(node);
  return own;
}

// The gradient of a row that several architectures read lies in the slot of the first of them.
__device__ inline void find_slot(CellArchitecture* kept, int64_t a, int e) {
  CellChoice& own = kept[a * kCellModes].edges[e];
  int64_t first = 0;
  for (; first < a; ++first) {
    const CellChoice& other = kept[first * kCellModes].edges[e];
    if (other.bank == own.bank && other.row == own.row) break;
  }
  own.slot = static_cast<int32_t>(first);
  own.again = first < a;
}

// One block, a thread an architecture: it reads 48 bytes and writes 348. Then a thread an edge
// looks for the first architecture that reads the same row. An edge's code decides little, so that
// it is latency, once a step, of a few hundred instructions; for 16 architectures as for one.
__device__ inline void plan_all(const NB201PlanParams& p) {
  auto* plans = reinterpret_cast<CellArchitecture*>(p.plan);
  for (int64_t a = threadIdx.x; a < p.architectures; a += blockDim.x) {
    const CellPlan plan = chosen_plan(p, a);
    for (int mode = 0; mode < kCellModes; ++mode) {
      plans[a * kCellModes + mode] = placed(plan, static_cast<CellMode>(mode), a);
    }
  }
  sync_block();
  for (int64_t i = threadIdx.x; i < p.architectures * kCellEdges; i += blockDim.x) {
    find_slot(plans + static_cast<int>(CellMode::kept), i / kCellEdges,
              static_cast<int>(i % kCellEdges));
  }
}
static_assert(2 * kCellEdges * sizeof(int32_t) == 48 && kCellPlanInts * sizeof(int32_t) == 348);

}  // namespace cwkernels
