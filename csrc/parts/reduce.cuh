#pragma once
#include "portable.cuh"
#include "scratch.h"

// Sums over pixels that many blocks share, without float atomics and in an order that depends on
// the shape and the device only. A sum is one number, or pair, for each of `width` channels of one
// architecture (a slot). Its blocks leave partial results side by side; the last to arrive of each
// kGroup neighbours merges theirs in the order of the blocks, and whoever needs the sum, mostly the
// next kernel on its load, merges the few groups. No launch only merges.
namespace cwkernels {

constexpr int kGroup = 16;
// 2 x 132 processors of an H100 are 264 blocks, 17 groups: what a consumer reads of a channel is
// 17 x 8 bytes of `Sums<float>`, 17 x 12 of `Moments<float>`, out of L2.
constexpr int kMostGroups = 17;
static_assert((2 * 132 + kGroup - 1) / kGroup == kMostGroups);

// Two plain sums.
template <class T>
struct Sums {
  T first, second;

  __device__ static Sums nothing() { return {T(0), T(0)}; }
  __device__ static Sums load(const Sums* from) {
    return {load_shared_by_blocks(&from->first), load_shared_by_blocks(&from->second)};
  }
  __device__ Sums merged(const Sums& other) const {
    return {first + other.first, second + other.second};
  }
};

// One plain sum.
template <class T>
struct Sum {
  T value;

  __device__ static Sum load(const Sum* from) { return {load_shared_by_blocks(&from->value)}; }
  __device__ Sum merged(const Sum& other) const { return {value + other.value}; }
};

// How many values there were, their mean, and the sum of their squares about it: what a mean of
// 1000 times the deviation leaves whole, as E[x^2] - E[x]^2 does not. Merged as Chan et al. do.
template <class T>
struct Moments {
  T count, mean, squares;

  __device__ static Moments nothing() { return {T(0), T(0), T(0)}; }
  __device__ static Moments load(const Moments* from) {
    return {load_shared_by_blocks(&from->count), load_shared_by_blocks(&from->mean),
            load_shared_by_blocks(&from->squares)};
  }
  __device__ Moments merged(const Moments& other) const {
    const T total = count + other.count;
    if (total == T(0)) return nothing();
    const T apart = other.mean - mean, share = other.count / total;
    return {total, mean + apart * share, squares + other.squares + apart * apart * count * share};
  }
  __device__ T variance() const { return count > T(0) ? squares / count : T(0); }
};

// The moments of those of kCount values in registers whose bit of `live` is set: the squares are
// taken about the mean in a second pass over the registers.
template <class T, int kCount>
__device__ __forceinline__ Moments<T> moments_of(const T (&values)[kCount],
                                                 unsigned live = 0xffffffffu) {
  static_assert(kCount <= 32);
  Moments<T> own = Moments<T>::nothing();
  T sum = T(0);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (live >> i & 1) own.count += T(1), sum += values[i];
  }
  if (own.count == T(0)) return own;
  own.mean = sum / own.count;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const T apart = values[i] - own.mean;
    if (live >> i & 1) own.squares += apart * apart;
  }
  return own;
}

// Merges the values of a block's `rows` (a power of two) rows of `columns` threads, of which thread
// row * columns + column brings `own`, as a tree: row 0 gets the whole. `values` is shared memory,
// [rows * columns], free again after the next barrier.
template <class Value>
__device__ __forceinline__ Value merge_rows(Value own, Value* values, int rows, int columns) {
  const int thread = static_cast<int>(threadIdx.x), row = thread / columns;
  for (int half = rows / 2; half > 0; half /= 2) {
    if (row >= half && row < 2 * half) values[thread] = own;
    sync_block();
    if (row < half) own = own.merged(values[thread + half * columns]);
  }
  return own;
}

// The `count` values `stride` apart from `first` on, merged in their order. kTogether loads are
// under way at once: one after the other 17 groups would cost 17 times the latency of L2, 7 us in
// the first instructions of each kernel that normalises. More of them take registers that kernels
// with two blocks on a processor do not have.
template <class Value>
__device__ __forceinline__ Value merged_in_order(const Value* first, int count, int64_t stride) {
  constexpr int kTogether = 3;
  Value total = Value::nothing();
#pragma unroll 1
  for (int from = 0; from < count; from += kTogether) {
    Value values[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (from + i < count) values[i] = first[(from + i) * stride];
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (from + i < count) total = from + i == 0 ? values[i] : total.merged(values[i]);
    }
  }
  return total;
}

// Where the partial results of some sums lie.
template <class Value>
struct Partials {
  Value* values;      // [slots][blocks + groups()][width]
  unsigned* tickets;  // [slots][groups() + 1], zeros, and zeros again when the launch is over
  int64_t blocks;     // of each slot
  int64_t width;

  __host__ __device__ int64_t groups() const { return (blocks + kGroup - 1) / kGroup; }
  __host__ __device__ int64_t values_per_slot() const { return (blocks + groups()) * width; }
  __host__ __device__ int64_t tickets_per_slot() const { return groups() + 1; }
  CudaScratch scratch(int64_t slots) const {
    return {slots * values_per_slot() * static_cast<int64_t>(sizeof(Value)),
            slots * tickets_per_slot()};
  }

  __device__ Value* of_block(int64_t slot, int64_t block) const {
    return values + slot * values_per_slot() + block * width;
  }
  __device__ Value* of_group(int64_t slot, int64_t group) const {
    return of_block(slot, blocks + group);
  }
  // The sum of a channel, merged by a later launch.
  __device__ Value sum(int64_t slot, int64_t channel) const {
    const Value* group = of_group(slot, 0) + channel;
    Value total = *group;
    for (int64_t g = 1; g < groups(); ++g) total = total.merged(group[g * width]);
    return total;
  }
  // The same, in more registers and less time.
  __device__ Value sum_at_once(int64_t slot, int64_t channel) const {
    return merged_in_order(of_group(slot, 0) + channel, static_cast<int>(groups()), width);
  }
};

// How many blocks share one architecture's sums of `slots` runs of channels, each with work for at
// most `wanted`: two on a processor, and few enough for kMostGroups.
inline int64_t sum_blocks(int processors, int64_t slots, int64_t wanted) {
  int64_t blocks = 2 * static_cast<int64_t>(processors) / slots;
  if (blocks > kGroup * kMostGroups) blocks = kGroup * kMostGroups;
  if (blocks > wanted) blocks = wanted;
  return blocks < 1 ? 1 : blocks;
}

// Whether this block is the last of `members` to arrive at a ticket; then what the others wrote
// before is there for load_shared_by_blocks. All threads call it; `last` is a shared variable.
__device__ __forceinline__ bool arrives_last(unsigned* ticket, int64_t members, int* last) {
  fence_device();
  sync_block();
  if (threadIdx.x == 0) {
    const auto most = static_cast<unsigned>(members - 1);
    *last = take_ticket(ticket, most) == most;
  }
  sync_block();
  return *last != 0;
}

// Merges the partial results of a block's group, each left by `chunks` blocks, if this one is the
// last of them: returns whether it is.
template <class Value>
__device__ __forceinline__ bool merge_group(const Partials<Value>& to, int64_t slot, int64_t block,
                                            int64_t chunks, int* last) {
  const int64_t group = block / kGroup, first = group * kGroup;
  const int64_t members = to.blocks - first < kGroup ? to.blocks - first : kGroup;
  unsigned* ticket = to.tickets + slot * to.tickets_per_slot() + group;
  if (!arrives_last(ticket, members * chunks, last)) return false;
  const Value* parts = to.of_block(slot, first);
  Value* merged = to.of_group(slot, group);
  for (int64_t c = threadIdx.x; c < to.width; c += blockDim.x) {
    Value total = Value::load(parts + c);
    for (int64_t b = 1; b < members; ++b)
      total = total.merged(Value::load(parts + b * to.width + c));
    merged[c] = total;
  }
  return true;
}

// By a block that has merged its group: if it is the last of all, it gives the sum of each channel
// to done(channel, sum), for a result that leaves the operation with this launch.
template <class Value, class Done>
__device__ __forceinline__ void merge_groups(const Partials<Value>& to, int64_t slot, int* last,
                                             const Done& done) {
  unsigned* ticket = to.tickets + slot * to.tickets_per_slot() + to.groups();
  if (!arrives_last(ticket, to.groups(), last)) return;
  for (int64_t c = threadIdx.x; c < to.width; c += blockDim.x) {
    const Value* group = to.of_group(slot, 0) + c;
    Value total = Value::load(group);
    for (int64_t g = 1; g < to.groups(); ++g) {
      total = total.merged(Value::load(group + g * to.width));
    }
    done(c, total);
  }
}

// Leaves own(channel) for each channel as the partial result of a block, by all its threads, and
// merges those of its group if the block is the last of it: returns whether it is.
template <class Value, class Own>
__device__ __forceinline__ bool leave_partial(const Partials<Value>& to, int64_t slot,
                                              int64_t block, int* last, const Own& own) {
  Value* mine = to.of_block(slot, block);
  for (int64_t c = threadIdx.x; c < to.width; c += blockDim.x) mine[c] = own(c);
  return merge_group(to, slot, block, 1, last);
}
// The same, and the sums as merge_groups gives them.
template <class Value, class Own, class Done>
__device__ __forceinline__ void leave_partial(const Partials<Value>& to, int64_t slot,
                                              int64_t block, int* last, const Own& own,
                                              const Done& done) {
  if (leave_partial(to, slot, block, last, own)) merge_groups(to, slot, last, done);
}

}  // namespace cwkernels
