#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "runtime.h"

// The host's side of csrc/parts/portable.cuh: the same functions, for kernels that the host's
// compiler compiles. What touches memory of the kernel stands here, where the sanitizers see it.
#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) alignas(bytes)
#define threadIdx (::cwkernels::emulator::place->thread)
#define blockIdx (::cwkernels::emulator::place->block)
#define blockDim (::cwkernels::emulator::place->block_size)
#define gridDim (::cwkernels::emulator::place->grid)

// What CUDA declares at the top.
using std::max;
using std::min;
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

namespace cwkernels {

using emulator::Site;

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarp = 32;

inline int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

// --- Order ---------------------------------------------------------------------------------------

inline void sync_block(Site site = Site::current()) { emulator::sync_block(site); }
inline void sync_warp(unsigned mask = kFullWarp, Site site = Site::current()) {
  emulator::meet(emulator::Act::sync_warp, mask, nullptr, site);
}
inline void fence_device() { emulator::fence(); }
inline unsigned take_ticket(unsigned* counter, unsigned last) {
  emulator::offer_ticket(counter);
  const unsigned before = __atomic_load_n(counter, __ATOMIC_RELAXED);
  __atomic_store_n(counter, before >= last ? 0 : before + 1, __ATOMIC_RELAXED);
  emulator::accept_ticket(counter);
  return before;
}
template <class T>
inline T load_shared_by_blocks(const T* source) {
  return *source;
}
inline float rounded_product(float a, float b) { return a * b; }
inline double rounded_product(double a, double b) { return a * b; }
struct alignas(8) Pair {
  float first, second;
};
inline void store_pair(float* to, float first, float second) {
  *reinterpret_cast<Pair*>(to) = {first, second};
}
template <class T>
inline T load_global(const T* source) {
  return *source;
}

inline void wait_for_previous() { emulator::wait_for_previous(); }
// The next launch's blocks always start before this one's run.
inline void allow_next() {}

// --- Warps ---------------------------------------------------------------------------------------

template <class T>
inline T exchange(T value, int source, unsigned mask, Site site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  emulator::Exchange with{0, 0, source};
  std::memcpy(&with.in, &value, sizeof(T));
  emulator::meet(emulator::Act::shuffle, mask, &with, site);
  std::memcpy(&value, &with.out, sizeof(T));
  return value;
}
template <class T>
inline T shuffle(T value, int source, unsigned mask = kFullWarp, Site site = Site::current()) {
  return exchange(value, source & (kWarp - 1), mask, site);
}
template <class T>
inline T shuffle_xor(T value, int other, unsigned mask = kFullWarp, Site site = Site::current()) {
  return exchange(value, lane() ^ other, mask, site);
}
template <class T>
inline T shuffle_down(T value, int distance, unsigned mask = kFullWarp,
                      Site site = Site::current()) {
  return exchange(value, lane() + distance < kWarp ? lane() + distance : lane(), mask, site);
}
inline unsigned votes(bool vote, unsigned mask = kFullWarp, Site site = Site::current()) {
  emulator::Vote with{vote, 0};
  emulator::meet(emulator::Act::votes, mask, &with, site);
  return with.out;
}

// --- Shared memory -------------------------------------------------------------------------------

template <class T>
constexpr size_t shared_bytes(size_t count) {
  return (count * sizeof(T) + 127) / 128 * 128;
}

class Shared {
 public:
  template <class T>
  T* take(size_t count, Site site = Site::current()) {
    return static_cast<T*>(
        emulator::take_shared(pieces_++, count * sizeof(T), shared_bytes<T>(count), site));
  }

 private:
  int pieces_ = 0;
};

// The source is read here and at the wait, the earliest and the latest time that the hardware may,
// and until then the destination holds NaN.
template <int kBytes>
inline void copy_async(void* to, const void* from, bool live = true, Site site = Site::current()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emulator::check_shared(to, kBytes, site);
  emulator::begin_copy({to, live ? from : nullptr, kBytes}, site);
  if (live) {
    volatile unsigned char byte;
    for (int i = 0; i < kBytes; ++i) byte = static_cast<const volatile unsigned char*>(from)[i];
    static_cast<void>(byte);
  }
  std::memset(to, 0xff, kBytes);
}
inline void copy_async_commit() { emulator::commit_copies(); }
template <int kPending>
inline void copy_async_wait() {
  emulator::Copy copy;
  while (emulator::next_copy(kPending, copy)) {
    const auto bytes = static_cast<size_t>(copy.bytes);
    if (copy.from) {
      std::memcpy(copy.to, copy.from, bytes);
    } else {
      std::memset(copy.to, 0, bytes);
    }
  }
}

// --- Matrix units --------------------------------------------------------------------------------

struct bf16 {
  uint16_t bits;
};

inline float bits_to_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t float_to_bits(float value) { return std::bit_cast<uint32_t>(value); }
inline uint32_t to_bf16_bits(float value) {
  const uint32_t bits = float_to_bits(value);
  if (std::isnan(value)) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline uint32_t pack_bf16(float low, float high) {
  return to_bf16_bits(low) | to_bf16_bits(high) << 16;
}
inline float to_float(bf16 value) { return bits_to_float(static_cast<uint32_t>(value.bits) << 16); }
inline float low_to_float(uint32_t packed) { return bits_to_float(packed << 16); }
inline float high_to_float(uint32_t packed) { return bits_to_float(packed & 0xffff0000u); }
inline uint32_t to_tf32(float value) {
  if (std::isnan(value)) return 0x7fffffff;
  const uint32_t bits = float_to_bits(value);
  return std::isinf(value) ? bits : (bits + 0x1000) & ~0x1fffu;
}

inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     Site site = Site::current()) {
  emulator::Product with{d, a, b};
  emulator::meet(emulator::Act::mma_tf32, kFullWarp, &with, site);
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     Site site = Site::current()) {
  emulator::Product with{d, a, b};
  emulator::meet(emulator::Act::mma_bf16, kFullWarp, &with, site);
}
inline void load_matrices(emulator::Act act, uint32_t (&d)[4], const void* row, Site site) {
  emulator::check_shared(row, 16, site);
  emulator::Row with;
  std::memcpy(with.bytes, row, 16);
  with.d = d;
  emulator::meet(act, kFullWarp, &with, site);
}
inline void ldmatrix(uint32_t (&d)[4], const void* row, Site site = Site::current()) {
  load_matrices(emulator::Act::ldmatrix, d, row, site);
}
inline void ldmatrix_transposed(uint32_t (&d)[4], const void* row, Site site = Site::current()) {
  load_matrices(emulator::Act::ldmatrix_transposed, d, row, site);
}

// --- Launches (host) -----------------------------------------------------------------------------

struct Device {
  int capability;
  int processors;
  size_t shared_bytes;
};

inline Device current_device() {
  const emulator::Settings& settings = emulator::settings();
  return {settings.capability, settings.processors, emulator::most_shared_bytes()};
}

struct Grid {
  int64_t x = 1, y = 1, z = 1;
};

template <class Params>
int launch(void (*kernel)(Params), Grid grid, int threads, size_t shared, void* /*stream*/,
           const Params& params, Site site = Site::current()) {
  static_assert(std::is_trivially_copyable_v<Params>);
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return 0;
  const auto run = [](const void* kernel, const void* params) {
    reinterpret_cast<void (*)(Params)>(kernel)(*static_cast<const Params*>(params));
  };
  return emulator::enqueue({run,
                            reinterpret_cast<const void*>(kernel),
                            &params,
                            sizeof(Params),
                            {grid.x, grid.y, grid.z},
                            threads,
                            shared},
                           site);
}

}  // namespace cwkernels
