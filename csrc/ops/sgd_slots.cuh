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

// As many as fit the 4 KB of a launch's parameters: those of NAS-Bench-201, of a cell 12 banks, and
// the 9 tensors that decay and 12 that do not which all architectures share.
constexpr int kSgdSlots = 94;
static_assert(kSgdSlots >= 6 * 12 + 9 + 12);
// Banks of six numbers of sets, and what is moved whole with decay and without.
constexpr int kSgdKinds = 8;

// What many tensors have alike.
struct SgdKind {
  SgdOptions options;
  const double* lr_on_device;
  uint16_t sets, slots, entries, shared;
};
static_assert(sizeof(SgdKind) == 40);
inline bool operator==(const SgdKind& one, const SgdKind& other) {
  return one.options == other.options && one.lr_on_device == other.lr_on_device &&
         one.sets == other.sets && one.slots == other.slots && one.entries == other.entries &&
         one.shared == other.shared;
}

struct SgdSlot {
  void* weight;
  void* momentum;
  const void* grad;
  const int64_t* rows;
  int32_t size;       // elements of a row
  uint32_t end : 28;  // the first block that is no longer this tensor's
  uint32_t kind : 4;
};
static_assert(sizeof(SgdSlot) == 40 && kSgdKinds <= 1 << 4);

struct SgdSlotsLaunch {
  SgdKind kinds[kSgdKinds];
  SgdSlot slots[kSgdSlots];
};
static_assert(sizeof(SgdSlotsLaunch) <= 4096);

// The row of slot u, or -1.
__device__ __forceinline__ int64_t row_of_slot(const SgdSlot& s, const SgdKind& k, int u) {
  if (!s.rows) return 0;
  const int64_t row = load_global(s.rows + u);
  return row >= 0 && row < k.sets ? row : -1;
}

// The first slot whose row is the least that is greater than `after`; none: `slots`.
__device__ __forceinline__ int next_slot(const SgdSlot& s, const SgdKind& k, int64_t after) {
  int found = k.slots;
  int64_t least = k.sets;
  for (int u = 0; u < k.slots; ++u) {
    const int64_t row = row_of_slot(s, k, u);
    if (row > after && row < least) least = row, found = u;
  }
  return found;
}

// Whether slot u moves its row: it is the first with it.
__device__ __forceinline__ bool slot_moves(const SgdSlot& s, const SgdKind& k, int u) {
  const int64_t row = row_of_slot(s, k, u);
  if (row < 0) return false;
  for (int before = 0; before < u; ++before) {
    if (row_of_slot(s, k, before) == row) return false;
  }
  return true;
}

// Elements [i, i + kLanes) of the row of slot `first`, the first with that row.
template <class T, int kLanes>
__device__ __forceinline__ void sgd_slot_move(const SgdSlot& s, const SgdKind& k, int first,
                                              int64_t i, T lr) {
  const T* grad = static_cast<const T*>(s.grad) + i;
  const int64_t size = s.size, row = row_of_slot(s, k, first);
  Lanes<T, kLanes> sum{};
  bool empty = true;
  for (int u = first; u < k.entries; ++u) {
    if (row_of_slot(s, k, u) != row) continue;
    const auto own = load_lanes<kLanes>(grad + u * size);
#pragma unroll
    for (int v = 0; v < kLanes; ++v) sum[v] = empty ? own[v] : sum[v] + own[v];
    empty = false;
  }
  move_by<T, kLanes>(
      sum, static_cast<T*>(s.weight) + row * size + i,
      static_cast<T*>(s.momentum) + (k.shared ? 0 : row * size) + i,
      {lr, static_cast<T>(k.options.momentum), static_cast<T>(k.options.weight_decay)});
}

template <class T>
__device__ __forceinline__ void sgd_slot_piece(const SgdSlot& s, const SgdKind& k, int first,
                                               int64_t begin, T lr) {
  const int64_t end = begin + kSgdPiece < s.size ? begin + kSgdPiece : s.size;
  if (is_wide<T>(s.weight, s.momentum, s.grad, s.size)) {
    constexpr int kLanes = kWideLanes<T>;
    for (int64_t i = begin + threadIdx.x * kLanes; i < end; i += kSgdThreads * kLanes) {
      sgd_slot_move<T, kLanes>(s, k, first, i, lr);
    }
  } else {
    for (int64_t i = begin + threadIdx.x; i < end; i += kSgdThreads) {
      sgd_slot_move<T, 1>(s, k, first, i, lr);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kSgdThreads, 6) sgd_slots_kernel(SgdSlotsLaunch l) {
  wait_for_previous();
  allow_next();
  const uint32_t block = blockIdx.x;
  int t = 0;
  while (l.slots[t].end <= block) ++t;
  const SgdSlot& s = l.slots[t];
  const SgdKind& k = l.kinds[s.kind];
  const auto pieces = static_cast<int32_t>((s.size + kSgdPiece - 1) / kSgdPiece);
  const auto place = static_cast<int32_t>(block - (t == 0 ? 0 : l.slots[t - 1].end));
  const int64_t begin = place % pieces * kSgdPiece;
  const T lr = static_cast<T>(k.lr_on_device ? load_global(k.lr_on_device) : k.options.lr);
  if (!k.shared) {
    if (slot_moves(s, k, place / pieces)) sgd_slot_piece(s, k, place / pieces, begin, lr);
    return;
  }
  for (int u = next_slot(s, k, -1); u < k.slots; u = next_slot(s, k, row_of_slot(s, k, u))) {
    sgd_slot_piece(s, k, u, begin, lr);
  }
}

// --- Host ----------------------------------------------------------------------------------------

// Collects tensors of one dtype and launches them, as many as fit at a time.
template <class T>
class SgdSlotsLaunches {
 public:
  explicit SgdSlotsLaunches(void* stream) : stream_(stream) {}

  void add(const SgdSlotsTarget& target) {
    const int64_t pieces = (target.row_size + kSgdPiece - 1) / kSgdPiece;
    const int64_t blocks = pieces * (target.shared_buffer ? target.slots > 0 : target.slots);
    if (blocks == 0) return;
    const SgdKind own = kind_of(target);
    if (count_ == kSgdSlots || blocks_ + blocks > kMostBlocks || place_of(own) == kSgdKinds) run();
    const int kind = place_of(own);
    if (kind == kinds_) l_.kinds[kinds_++] = own;
    blocks_ += blocks;
    SgdSlot& slot = l_.slots[count_++];
    slot.weight = target.weight;
    slot.momentum = target.momentum;
    slot.grad = target.grad;
    slot.rows = target.rows;
    slot.size = static_cast<int32_t>(target.row_size);
    slot.end = static_cast<uint32_t>(blocks_);
    slot.kind = static_cast<uint32_t>(kind);
  }

  // Launches what was added; returns the first cudaError_t that is one.
  int run() {
    if (count_ > 0 && error_ == 0) {
      error_ = launch(sgd_slots_kernel<T>, {blocks_}, kSgdThreads, 0, stream_, l_);
    }
    count_ = kinds_ = 0;
    blocks_ = 0;
    return error_;
  }

 private:
  // What the 28 bits of an end number.
  static constexpr int64_t kMostBlocks = (1 << 28) - 1;

  static SgdKind kind_of(const SgdSlotsTarget& target) {
    return {target.options,
            target.lr_on_device,
            static_cast<uint16_t>(target.sets),
            static_cast<uint16_t>(target.slots),
            static_cast<uint16_t>(target.entries),
            target.shared_buffer};
  }

  // Where the launch has this kind, or where it comes.
  int place_of(const SgdKind& kind) const {
    int place = 0;
    while (place < kinds_ && !(l_.kinds[place] == kind)) ++place;
    return place;
  }

  SgdSlotsLaunch l_{};
  int count_ = 0, kinds_ = 0, error_ = 0;
  int64_t blocks_ = 0;
  void* stream_;
};

}  // namespace cwkernels
