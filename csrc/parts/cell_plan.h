#pragma once
#include "../ops/nb201_cell.h"

// What the codes of an architecture make of a cell: which edges carry anything, what they read,
// what is kept. The binding plans by these functions where the host knows the choice, a kernel
// where it lies on the device; the binding is compiled without CUDA, too.
#ifdef __CUDACC__
#define CWK_HOST_DEVICE __host__ __device__
#else
#define CWK_HOST_DEVICE
#endif

namespace cwkernels {

// kCellSources and kCellTargets for device code, which has no constant arrays of the host.
CWK_HOST_DEVICE constexpr int source_of(int e) { return 0x210100 >> 4 * e & 15; }
CWK_HOST_DEVICE constexpr int target_of(int e) { return 0x333221 >> 4 * e & 15; }
constexpr bool same_edges() {
  for (int e = 0; e < kCellEdges; ++e) {
    if (source_of(e) != kCellSources[e] || target_of(e) != kCellTargets[e]) return false;
  }
  return true;
}
static_assert(same_edges());

// Drops the edges that cannot carry anything from the input to the output.
CWK_HOST_DEVICE inline void drop_dead(CellPlan& plan) {
  bool fed[kCellNodes] = {true}, reaches[kCellNodes] = {false, false, false, true};
  for (int e = 0; e < kCellEdges; ++e) {
    fed[target_of(e)] |= plan.edges[e].code != CellCode::none && fed[source_of(e)];
  }
  for (int e = kCellEdges - 1; e >= 0; --e) {
    reaches[source_of(e)] |= plan.edges[e].code != CellCode::none && reaches[target_of(e)];
  }
  for (int e = 0; e < kCellEdges; ++e) {
    if (!fed[source_of(e)] || !reaches[target_of(e)]) plan.edges[e].code = CellCode::none;
  }
}

CWK_HOST_DEVICE inline int64_t bank_of(CellCode code, int64_t per_edge) {
  switch (code) {
    case CellCode::conv_1x1: return 0;
    case CellCode::conv_3x3: return 1;
    case CellCode::skip: return per_edge == kCellBanks ? 2 : -1;
    default: return -1;
  }
}

// A node with one incoming edge, a plain skip, is the node that the skip comes from.
CWK_HOST_DEVICE inline void find_origins(CellPlan& plan) {
  for (int n = 0; n < kCellNodes; ++n) plan.origins[n] = n;
  for (int n = 1; n < kCellNodes; ++n) {
    int count = 0, only = 0;
    for (int e = 0; e < kCellEdges; ++e) {
      if (target_of(e) != n || plan.edges[e].code == CellCode::none) continue;
      ++count;
      only = e;
    }
    const CellEdge& edge = plan.edges[only];
    if (count == 1 && edge.code == CellCode::skip && edge.bank < 0) {
      plan.origins[n] = plan.origins[source_of(only)];
    }
  }
}

// What is kept for backward, from row `kept` on: raw outputs of convolutions that are normalised,
// inner nodes that a convolution leaves. Returns the next row.
CWK_HOST_DEVICE inline int64_t place_kept(CellPlan& plan, int64_t kept) {
  bool read[kCellNodes] = {};
  for (int e = 0; e < kCellEdges; ++e) {
    CellEdge& edge = plan.edges[e];
    const bool normalised = edge.code == CellCode::conv_1x1 || edge.code == CellCode::conv_3x3;
    edge.raw = normalised ? kept++ : -1;
    read[plan.origins[source_of(e)]] |= edge.bank >= 0;
  }
  for (int n = 0; n < kCellNodes; ++n) plan.nodes[n] = n > 0 && read[n] ? kept++ : -1;
  return kept;
}

// Makes the whole plan of its edges' codes and rows. Returns the next row of `kept`.
CWK_HOST_DEVICE inline int64_t complete_plan(CellPlan& plan, int64_t per_edge, int64_t kept) {
  drop_dead(plan);
  for (CellEdge& edge : plan.edges) edge.bank = bank_of(edge.code, per_edge);
  find_origins(plan);
  return place_kept(plan, kept);
}

}  // namespace cwkernels
