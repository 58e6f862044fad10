#pragma once
#include "../ops/select.h"
#include "portable.cuh"

// One block: a warp for each architecture, a lane for each decision. A step has a few architectures
// of 6 or 8 choices; what takes time is four loads that wait for each other (choice, its weights in
// the combination, row; all lanes at once), 2 to 3 µs, and not the 32 warps of one processor. One
// block also makes the first fault of all architectures one block's to find, in any order of warps.
namespace cwkernels {

static_assert(kSelectDecisions == kWarp && sizeof(SelectParams) <= 4096);
constexpr int64_t kSelectWarps = 32;

struct SelectFault {
  int64_t architecture, decision, choice;
};

// The decisions, as bits, whose edge can carry something from the first node to the last.
__device__ __forceinline__ unsigned select_live(const SelectParams& p, unsigned carries) {
  if (p.nodes == 0) return kFullWarp;
  unsigned reached = 1, useful = 1u << (p.nodes - 1), live = 0;
  for (int d = 0; d < p.decisions; ++d) {
    const bool passes = (carries >> d & 1u) && (reached >> p.sources[d] & 1u);
    if (passes) reached |= 1u << p.targets[d];
  }
  for (int d = p.decisions - 1; d >= 0; --d) {
    const bool passes = (carries >> d & 1u) && (useful >> p.targets[d] & 1u);
    if (passes) useful |= 1u << p.sources[d];
    if (passes && (reached >> p.sources[d] & 1u)) live |= 1u << d;
  }
  return live;
}

// What this lane's decision runs.
struct Selected {
  int code, row;
};

// By all lanes of a warp; `valid` only where `choice` is one of the decision's.
__device__ __forceinline__ Selected select_one(const SelectParams& p, int choice, bool valid) {
  const int d = lane();
  const bool decides = d < p.decisions;
  const int32_t* map = p.maps[decides ? d : 0];
  int number = 0;
  for (int e = 0; e < p.decisions; ++e) number += shuffle(choice, e) * load_global(map + e);
  if (!decides || !valid) return {0, 0};
  return {p.codes[d][choice], load_global(map + p.decisions + number)};
}

__device__ __forceinline__ void select_norms(const SelectParams& p, int64_t a,
                                             const Selected& selected, unsigned live) {
  for (int first = 0; first < p.norms; first += kWarp) {
    const int r = first + lane();
    const SelectNorm norm = p.norm_of[r < p.norms ? r : 0];
    const int d = norm.decision < 0 ? 0 : norm.decision;
    const int code = shuffle(selected.code, d), row = shuffle(selected.row, d);
    if (r >= p.norms) continue;
    const bool runs = code == norm.code && (live >> d & 1u);
    p.norm_rows[r * p.architectures + a] = norm.decision < 0 ? 0 : runs ? row : -1;
  }
}

// Only a thread that has seen a fault is here: the host reads the flag when it likes, and what was
// not yet read is not overwritten.
__device__ __forceinline__ void select_report(const SelectParams& p, const SelectFault& fault) {
  if (p.fault[0] != 0) return;
  p.fault[1] = fault.architecture;
  p.fault[2] = fault.decision;
  p.fault[3] = fault.choice;
  p.fault[0] = 1;
}

// By all threads of a block; `faults` has room for each warp. It ends behind a barrier: what it
// wrote may be read.
__device__ inline void select_all(const SelectParams& p, SelectFault* faults) {
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, d = lane();
  bool seen = false;
  for (int64_t a = warp; a < p.architectures; a += warps) {
    const int64_t choice = d < p.decisions ? load_global(p.arch + a * p.decisions + d) : 0;
    const bool valid = d >= p.decisions || (choice >= 0 && choice < p.candidates[d]);
    const unsigned wrong = votes(!valid);
    const Selected selected = select_one(p, valid ? static_cast<int>(choice) : 0, valid);
    if (d < p.decisions) {
      int32_t* to = p.selection + (a * p.decisions + d) * 2;
      to[0] = selected.code;
      to[1] = selected.row;
    }
    select_norms(p, a, selected, select_live(p, votes(selected.code != 0)) & ~wrong);
    if (wrong != 0 && !seen) {
      if ((wrong & (0u - wrong)) == 1u << d) faults[warp] = {a, d, choice};
      seen = true;
    }
  }
  if (!seen && d == 0) faults[warp].architecture = p.architectures;
  sync_block();
  if (threadIdx.x != 0) return;
  SelectFault first = faults[0];
  for (int w = 1; w < warps; ++w) {
    if (faults[w].architecture < first.architecture) first = faults[w];
  }
  if (first.architecture < p.architectures) select_report(p, first);
}

// --- Host ----------------------------------------------------------------------------------------

inline int select_threads(int64_t architectures) {
  return static_cast<int>(architectures < kSelectWarps ? architectures : kSelectWarps) * kWarp;
}

}  // namespace cwkernels
