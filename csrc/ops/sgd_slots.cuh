#pragma once
#include "../parts/momentum.cuh"
#include "sgd_slots.h"

// The rows of all tensors in one launch, as sgd's, but what moves is found where it lies: each slot
// has its blocks, those without a row of their own return. Of equal rows the first slot sums the
// gradients, in order, and moves. A tensor whose rows share their momentum has the blocks of one
// slot, which take one row after the other. A step of NAS-Bench-201 has 81 tensors that decay: 74
// blocks for what all architectures share and 648 for each of them, 54 for an edge and a cell of
// each width, of which 48 move something where the edge chose a 3 x 3 and 6 where it chose a 1 x 1.
namespace cwkernels {

// As many as fit the 4 KB of a launch's parameters.
constexpr int kSgdSlots = 84;
static_assert(kSgdSlots >= 6 * 12 + 9);  // those of NAS-Bench-201 that decay

struct SgdSlot {
  void* weight;
  void* momentum;
  const void* grad;
  const int64_t* rows;
  int32_t size;  // elements of a row
  int32_t end;   // the first block that is no longer this tensor's
  uint16_t sets, slots, entries, shared;
};
static_assert(sizeof(SgdSlot) == 48);

struct SgdSlotsLaunch {
  double lr, momentum, weight_decay;
  const double* lr_on_device;
  SgdSlot slots[kSgdSlots];
};
static_assert(sizeof(SgdSlotsLaunch) <= 4096);

// The row of slot u, or -1.
__device__ __forceinline__ int64_t row_of_slot(const SgdSlot& s, int u) {
  if (!s.rows) return 0;
  const int64_t row = load_global(s.rows + u);
  return row >= 0 && row < s.sets ? row : -1;
}

// The first slot whose row is the least that is greater than `after`; none: `slots`.
__device__ __forceinline__ int next_slot(const SgdSlot& s, int64_t after) {
  int found = s.slots;
  int64_t least = s.sets;
  for (int u = 0; u < s.slots; ++u) {
    const int64_t row = row_of_slot(s, u);
    if (row > after && row < least) least = row, found = u;
  }
  return found;
}

// Whether slot u moves its row: it is the first with it.
__device__ __forceinline__ bool slot_moves(const SgdSlot& s, int u) {
  const int64_t row = row_of_slot(s, u);
  if (row < 0) return false;
  for (int before = 0; before < u; ++before) {
    if (row_of_slot(s, before) == row) return false;
  }
  return true;
}

// Elements [i, i + kLanes) of the row of slot `first`, the first with that row.
template <class T, int kLanes>
__device__ __forceinline__ void sgd_slot_move(const SgdSlot& s, int first, int64_t i,
                                              const SgdRates<T>& rates) {
  const T* grad = static_cast<const T*>(s.grad) + i;
  const int64_t size = s.size, row = row_of_slot(s, first);
  Lanes<T, kLanes> sum{};
  bool empty = true;
  for (int u = first; u < s.entries; ++u) {
    if (row_of_slot(s, u) != row) continue;
    const auto own = load_lanes<kLanes>(grad + u * size);
#pragma unroll
    for (int k = 0; k < kLanes; ++k) sum[k] = empty ? own[k] : sum[k] + own[k];
    empty = false;
  }
  move_by<T, kLanes>(sum, static_cast<T*>(s.weight) + row * size + i,
                     static_cast<T*>(s.momentum) + (s.shared ? 0 : row * size) + i, rates);
}

template <class T>
__device__ __forceinline__ void sgd_slot_piece(const SgdSlot& s, int first, int64_t begin,
                                               const SgdRates<T>& rates) {
  const int64_t end = begin + kSgdPiece < s.size ? begin + kSgdPiece : s.size;
  if (is_wide<T>(s.weight, s.momentum, s.grad, s.size)) {
    constexpr int kLanes = kWideLanes<T>;
    for (int64_t i = begin + threadIdx.x * kLanes; i < end; i += kSgdThreads * kLanes) {
      sgd_slot_move<T, kLanes>(s, first, i, rates);
    }
  } else {
    for (int64_t i = begin + threadIdx.x; i < end; i += kSgdThreads) {
      sgd_slot_move<T, 1>(s, first, i, rates);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kSgdThreads, 6) sgd_slots_kernel(SgdSlotsLaunch l) {
  wait_for_previous();
  allow_next();
  const auto block = static_cast<int32_t>(blockIdx.x);
  int t = 0;
  while (l.slots[t].end <= block) ++t;
  const SgdSlot& s = l.slots[t];
  const auto pieces = static_cast<int32_t>((s.size + kSgdPiece - 1) / kSgdPiece);
  const int32_t place = block - (t == 0 ? 0 : l.slots[t - 1].end);
  const int64_t begin = place % pieces * kSgdPiece;
  const double lr = l.lr_on_device ? load_global(l.lr_on_device) : l.lr;
  const SgdRates<T> rates{static_cast<T>(lr), static_cast<T>(l.momentum),
                          static_cast<T>(l.weight_decay)};
  if (!s.shared) {
    if (slot_moves(s, place / pieces)) sgd_slot_piece(s, place / pieces, begin, rates);
    return;
  }
  for (int u = next_slot(s, -1); u < s.slots; u = next_slot(s, row_of_slot(s, u))) {
    sgd_slot_piece(s, u, begin, rates);
  }
}

// --- Host ----------------------------------------------------------------------------------------

// Collects tensors of one dtype and launches them, as many as fit at a time.
template <class T>
class SgdSlotsLaunches {
 public:
  SgdSlotsLaunches(const SgdSlotsParams& p, void* stream) : stream_(stream) {
    l_.lr = p.lr;
    l_.momentum = p.momentum;
    l_.weight_decay = p.weight_decay;
    l_.lr_on_device = p.lr_on_device;
  }

  void add(const SgdSlotsTarget& target) {
    const int64_t pieces = (target.row_size + kSgdPiece - 1) / kSgdPiece;
    const int64_t blocks = pieces * (target.shared_buffer ? target.slots > 0 : target.slots);
    if (blocks == 0) return;
    if (count_ == kSgdSlots || blocks_ + blocks > kMostBlocks) run();
    blocks_ += blocks;
    SgdSlot& slot = l_.slots[count_++];
    slot.weight = target.weight;
    slot.momentum = target.momentum;
    slot.grad = target.grad;
    slot.rows = target.rows;
    slot.size = static_cast<int32_t>(target.row_size);
    slot.end = static_cast<int32_t>(blocks_);
    slot.sets = static_cast<uint16_t>(target.sets);
    slot.slots = static_cast<uint16_t>(target.slots);
    slot.entries = static_cast<uint16_t>(target.entries);
    slot.shared = target.shared_buffer;
  }

  // Launches what was added; returns the first cudaError_t that is one.
  int run() {
    if (count_ > 0 && error_ == 0) {
      error_ = launch(sgd_slots_kernel<T>, {blocks_}, kSgdThreads, 0, stream_, l_);
    }
    count_ = 0;
    blocks_ = 0;
    return error_;
  }

 private:
  // The hardware's limit of grid.x, and int32's.
  static constexpr int64_t kMostBlocks = 2147483647;

  SgdSlotsLaunch l_{};
  int count_ = 0, error_ = 0;
  int64_t blocks_ = 0;
  void* stream_;
};

}  // namespace cwkernels
