#pragma once
#include "cell_plan.h"
#include "portable.cuh"

// An architecture of a cell as kernels read it, and what it makes of a launch.
namespace cwkernels {

// Where an image stack [N, H, W, C] lies: from 0 on in a row of `kept`, below kNowhere in scratch.
constexpr int32_t kNowhere = -1;
__host__ __device__ constexpr int32_t scratch_place(int32_t i) { return kNowhere - 1 - i; }

// A launch works on as many architectures as its parameters, 4 KB, have room for.
constexpr int kCellMost = 16;

// A CellEdge as kernels read it.
struct CellChoice {
  int8_t code;  // a CellCode
  int8_t bank;
  bool again;
  int8_t job;  // its number among the jobs that a launch carries
  int32_t row;
  int32_t raw;  // a place
  int32_t slot;
};

// A CellPlan as kernels read it.
struct CellArchitecture {
  CellChoice edges[kCellEdges];
  int8_t origins[kCellNodes];
  int32_t nodes[kCellNodes];  // places of nodes that are stored
};
static_assert(sizeof(CellChoice) == 16 && sizeof(CellArchitecture) == 116);

// The edge between two nodes.
__host__ __device__ constexpr int edge_between(int source, int target) {
  return target * (target - 1) / 2 + source;
}
static_assert(edge_between(0, 1) == 0 && edge_between(1, 2) == 2 && edge_between(2, 3) == 5);

// The convolutions that leave a node lie side by side in its moments, those that enter it in its
// sums.
__host__ __device__ constexpr int leaving_place(int e) { return target_of(e) - source_of(e) - 1; }
__host__ __device__ constexpr int entering_place(int e) { return source_of(e); }
__host__ __device__ constexpr bool normalised(const CellChoice& edge) {
  return edge.code == static_cast<int8_t>(CellCode::conv_1x1) ||
         edge.code == static_cast<int8_t>(CellCode::conv_3x3);
}
__host__ __device__ constexpr bool convolves(const CellChoice& edge) { return edge.bank >= 0; }
__host__ __device__ constexpr bool is(const CellChoice& edge, CellCode code) {
  return edge.code == static_cast<int8_t>(code);
}
__host__ __device__ constexpr int kernel_size(const CellChoice& edge) {
  return is(edge, CellCode::conv_3x3) ? 3 : 1;
}

// What a pass stores: for its backward pass, too; for its own later launches; in evaluation, only
// the nodes, as edges are normalised when they are convolved.
enum class CellMode { kept, measured, fused };
constexpr int kCellModes = 3;
static_assert(sizeof(CellArchitecture) * kCellModes == kCellPlanInts * sizeof(int32_t));

// Most places that an architecture needs, if all are of one kind. Kept: a raw output for each edge,
// and both inner nodes, as many as six convolutions leave. Measured: each edge has a raw output or,
// if it is a skip or a pool, the node that is stored for it.
__host__ __device__ constexpr int cell_places(CellMode mode) {
  return mode == CellMode::kept ? kCellKept : mode == CellMode::measured ? kCellEdges : 2;
}

// What a launch for a node does in an architecture.
__host__ __device__ inline bool enters(const CellArchitecture& own, int e, int n) {
  return target_of(e) == n && !is(own.edges[e], CellCode::none);
}
__host__ __device__ inline bool leaves(const CellArchitecture& own, int e, int n) {
  return source_of(e) == n && !is(own.edges[e], CellCode::none);
}
__host__ __device__ inline bool fed(const CellArchitecture& own, int n) {
  bool any = n == 0;
  for (int e = 0; e < kCellEdges; ++e) any |= enters(own, e, n);
  return any;
}

// Whether a launch sums a node from what enters it; otherwise it reads it where it is stored.
__host__ __device__ inline bool is_summed(const CellArchitecture& own, int n) {
  return n == 3 || (n > 0 && own.origins[n] == n);
}

// Whether launch `node` of the forward pass has work in an architecture.
__host__ __device__ inline bool cell_forward_works(const CellArchitecture& own, int node) {
  bool any = node == 3 || own.nodes[node] != kNowhere;
  for (int e = 0; e < kCellEdges; ++e) any |= leaves(own, e, node) && convolves(own.edges[e]);
  return any;
}
// In evaluation, with nothing kept: what leaves a node is added to the nodes that it enters, where
// those are stored. A node that is only a skip is read where it comes from.
__host__ __device__ inline bool cell_adds(const CellArchitecture& own, int e) {
  return !is(own.edges[e], CellCode::none) &&
         (target_of(e) == 3 || own.nodes[target_of(e)] != kNowhere);
}
__host__ __device__ inline bool cell_begins(const CellArchitecture& own, int e) {
  bool begins = true;
  for (int before = 0; before < e; ++before) begins &= !enters(own, before, target_of(e));
  return begins;
}
__host__ __device__ inline bool cell_evaluation_works(const CellArchitecture& own, int node) {
  bool any = node == 0 && !fed(own, 3);
  for (int e = 0; e < kCellEdges; ++e) any |= source_of(e) == node && cell_adds(own, e);
  return any;
}

// The choices of a plan. What such a pass stores has place 0, all else is nowhere.
__host__ __device__ inline CellArchitecture cell_architecture(const CellPlan& plan, CellMode mode) {
  CellArchitecture own{};
  const bool fused = mode == CellMode::fused;
  for (int n = 0; n < kCellNodes; ++n) own.origins[n] = static_cast<int8_t>(plan.origins[n]);
  bool read[kCellNodes] = {};  // by what does not compute it on its load
  for (int e = 0; e < kCellEdges; ++e) {
    const CellEdge& edge = plan.edges[e];
    own.edges[e] = {static_cast<int8_t>(edge.code),
                    static_cast<int8_t>(edge.bank),
                    edge.again,
                    0,
                    static_cast<int32_t>(edge.row),
                    edge.bank >= 0 && !fused ? 0 : kNowhere,
                    static_cast<int32_t>(edge.slot)};
    const bool added = edge.code != CellCode::none && edge.bank < 0;
    read[plan.origins[source_of(e)]] |= added || fused;
  }
  for (int n = 0; n < kCellNodes; ++n) {
    const bool inner = n == 1 || n == 2;
    const bool own_value = inner && own.origins[n] == n && fed(own, n);
    const bool kept = mode == CellMode::kept && inner && plan.nodes[n] >= 0;
    own.nodes[n] = kept || (own_value && read[n]) ? 0 : kNowhere;
  }
  return own;
}

}  // namespace cwkernels
