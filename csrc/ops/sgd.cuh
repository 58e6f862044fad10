#pragma once
#include "../parts/momentum.cuh"
#include "sgd.h"

// All rows that move in one launch, whatever group they are of: what a step moves (of NAS-Bench-201
// some 60 tensors, of Macro 80) fits the parameters of one. It is bound by memory, 20 bytes an
// element: weight, momentum and gradient read, two of them written. A block takes kSgdPiece
// neighbouring elements of a row, four of them a thread, by 16 bytes where the row allows it.
namespace cwkernels {

// As many as fit the 4 KB of a launch's parameters: 40 bytes a row, 4 for each gradient of one, 24
// for the options of a group: of one that decays, and one that does not.
constexpr int kSgdMoves = 84;
constexpr int kSgdEntries = 168;
constexpr int kSgdGroups = 2;

// A row that moves.
struct SgdMove {
  void* weight;
  void* momentum;
  const void* grad;      // what the entries are of
  int64_t size;          // elements
  int32_t end;           // the first block that is no longer this chain's
  uint8_t first, count;  // of the entries that its gradient sums, in order
  uint8_t group;         // whose options are its own
  // The next row shares the momentum: the same threads move it, after this one.
  bool chained : 1;
  // `carry` holds the sum of the gradients of the launch before.
  bool continued : 1;
  // There are more gradients: their sum goes to `carry`, and nothing moves yet.
  bool unfinished : 1;
};
static_assert(sizeof(SgdMove) == 40 && kSgdEntries < 256);

struct SgdLaunch {
  SgdOptions groups[kSgdGroups];
  void* carry;
  SgdMove moves[kSgdMoves];
  int32_t entries[kSgdEntries];
};
static_assert(sizeof(SgdLaunch) <= 4096);

template <class T, int kLanes>
__device__ __forceinline__ void sgd_move(const SgdLaunch& l, const SgdMove& move, int64_t i) {
  const T* grad = static_cast<const T*>(move.grad);
  T* carry = static_cast<T*>(l.carry);
  Lanes<T, kLanes> sum{};
  if (move.continued) sum = load_lanes<kLanes>(carry + i);
  for (int e = 0; e < move.count; ++e) {
    const auto own = load_lanes<kLanes>(grad + l.entries[move.first + e] * move.size + i);
#pragma unroll
    for (int k = 0; k < kLanes; ++k) {
      sum[k] = e == 0 && !move.continued ? own[k] : sum[k] + own[k];
    }
  }
  if (move.unfinished) return store_lanes(carry + i, sum);
  const SgdOptions& own = l.groups[move.group];
  move_by<T, kLanes>(
      sum, static_cast<T*>(move.weight) + i, static_cast<T*>(move.momentum) + i,
      {static_cast<T>(own.lr), static_cast<T>(own.momentum), static_cast<T>(own.weight_decay)});
}

// Six blocks on a processor, 40 registers: left alone, ptxas takes 32 for eight blocks, and spills.
template <class T>
__global__ void __launch_bounds__(kSgdThreads, 6) sgd_kernel(SgdLaunch l) {
  wait_for_previous();
  allow_next();
  const auto block = static_cast<int32_t>(blockIdx.x);
  int u = 0;
  while (l.moves[u].end <= block) ++u;
  const int64_t first = (block - (u == 0 ? 0 : l.moves[u - 1].end)) * kSgdPiece;
  do {
    const SgdMove& move = l.moves[u];
    const int64_t end = first + kSgdPiece < move.size ? first + kSgdPiece : move.size;
    if (is_wide<T>(move.weight, move.momentum, move.grad, move.size)) {
      constexpr int kLanes = kWideLanes<T>;
      for (int64_t i = first + threadIdx.x * kLanes; i < end; i += kSgdThreads * kLanes) {
        sgd_move<T, kLanes>(l, move, i);
      }
    } else {
      for (int64_t i = first + threadIdx.x; i < end; i += kSgdThreads) sgd_move<T, 1>(l, move, i);
    }
  } while (l.moves[u++].chained);
}

// --- Host ----------------------------------------------------------------------------------------

// Collects rows of one dtype and launches them, as many as fit at a time.
template <class T>
class SgdLaunches {
 public:
  SgdLaunches(const SgdParams& p, void* stream) : stream_(stream) { l_.carry = p.carry; }

  void add(const SgdTarget& target) {
    for (int64_t u = 0; u < target.move_count; ++u) {
      add(target, target.moves[u]);
      if (target.shared_buffer && u + 1 < target.move_count) l_.moves[moves_ - 1].chained = true;
    }
  }

  // Launches what was added; returns the first cudaError_t that is one.
  int run() {
    if (moves_ > 0) {
      l_.moves[moves_ - 1].chained = false;  // the next row comes in the next launch
      if (blocks_ > 0 && error_ == 0) {
        error_ = launch(sgd_kernel<T>, {blocks_}, kSgdThreads, 0, stream_, l_);
      }
    }
    moves_ = entries_ = groups_ = 0;
    blocks_ = 0;
    return error_;
  }

 private:
  void add(const SgdTarget& target, const SgdRow& row) {
    const int64_t* entries = target.entries + row.first;
    int64_t left = row.count;
    // A row of more gradients than fit goes alone, launch after launch.
    const bool alone = left > kSgdEntries;
    const bool full = moves_ == kSgdMoves || entries_ + left > kSgdEntries ||
                      group_of(target.options) == kSgdGroups;
    if (alone || full) run();
    bool continued = false;
    do {
      const int64_t count = left < kSgdEntries ? left : kSgdEntries;
      SgdMove& move = append(target, row, entries, count);
      move.continued = continued;
      move.unfinished = count < left;
      continued = true;
      entries += count;
      left -= count;
      if (move.unfinished) run();
    } while (left > 0);
  }

  SgdMove& append(const SgdTarget& target, const SgdRow& row, const int64_t* entries,
                  int64_t count) {
    SgdMove& move = l_.moves[moves_];
    const int64_t at = row.row * target.row_size;
    move = {};
    move.weight = static_cast<T*>(target.weight) + at;
    move.momentum = static_cast<T*>(target.momentum) + (target.shared_buffer ? 0 : at);
    move.grad = target.grad;
    move.size = target.row_size;
    // A chain is found by its first row: the blocks of one are those of all.
    const bool follows = moves_ > 0 && l_.moves[moves_ - 1].chained;
    if (!follows) blocks_ += (target.row_size + kSgdPiece - 1) / kSgdPiece;
    move.end = static_cast<int32_t>(blocks_);
    move.first = static_cast<uint8_t>(entries_);
    move.count = static_cast<uint8_t>(count);
    const int group = group_of(target.options);
    if (group == groups_) l_.groups[groups_++] = target.options;
    move.group = static_cast<uint8_t>(group);
    for (int64_t e = 0; e < count; ++e) l_.entries[entries_++] = static_cast<int32_t>(entries[e]);
    ++moves_;
    return move;
  }

  // Where the launch has these options, or where they come.
  int group_of(const SgdOptions& options) const {
    int group = 0;
    while (group < groups_ && !(l_.groups[group] == options)) ++group;
    return group;
  }

  SgdLaunch l_{};
  int moves_ = 0, entries_ = 0, groups_ = 0, error_ = 0;
  int64_t blocks_ = 0;
  void* stream_;
};

}  // namespace cwkernels
