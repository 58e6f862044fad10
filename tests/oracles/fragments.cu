#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../csrc/parts/portable.cuh"
#include "fragments.h"
#ifndef __CUDACC__
#include "runtime.h"
#endif

// Compares what matrix units and conversions do with the tables of fragments.h: on a GPU by nvcc,
// on the emulator by the host's compiler. A line for each that is wrong, and exit code 1; a
// permutation of the inner dimension that both factors share is no difference to any kernel, nor
// seen here.
namespace cwkernels::fragments {
namespace {

constexpr int kMost = 8;  // registers a lane gives or gets

// One warp. What a lane gives and gets, [32][kMost] each; `shared` is what ldmatrix reads.
struct Trial {
  const uint32_t* given;
  const uint16_t* shared;
  uint32_t* got;
};

__device__ inline void give(uint32_t (&a)[4], uint32_t (&b)[2], const Trial& trial) {
  for (int i = 0; i < 4; ++i) a[i] = trial.given[lane() * kMost + i];
  for (int i = 0; i < 2; ++i) b[i] = trial.given[lane() * kMost + 4 + i];
}

__device__ inline void get(const float (&d)[4], const Trial& trial) {
  for (int i = 0; i < 4; ++i) trial.got[lane() * kMost + i] = float_to_bits(d[i]);
}

__global__ void tf32_kernel(Trial trial) {
  wait_for_previous();
  uint32_t a[4], b[2];
  float d[4] = {1, 1, 1, 1};
  give(a, b, trial);
  mma_tf32(d, a, b);
  get(d, trial);
}

__global__ void bf16_kernel(Trial trial) {
  wait_for_previous();
  uint32_t a[4], b[2];
  float d[4] = {1, 1, 1, 1};
  give(a, b, trial);
  mma_bf16(d, a, b);
  get(d, trial);
}

template <bool kTransposed>
__global__ void ldmatrix_kernel(Trial trial) {
  wait_for_previous();
  auto* values = Shared().take<uint16_t>(256);
  for (int i = lane(); i < 256; i += kWarp) values[i] = trial.shared[i];
  sync_warp();
  uint32_t d[4];
  if constexpr (kTransposed) {
    ldmatrix_transposed(d, values + lane() * 8);
  } else {
    ldmatrix(d, values + lane() * 8);
  }
  for (int i = 0; i < 4; ++i) trial.got[lane() * kMost + i] = d[i];
}

// Register 0 to tf32; registers 0 and 1 to a pair of bf16, and its halves back.
__global__ void conversion_kernel(Trial trial) {
  wait_for_previous();
  const float low = bits_to_float(trial.given[lane() * kMost]);
  const float high = bits_to_float(trial.given[lane() * kMost + 1]);
  uint32_t* got = trial.got + lane() * kMost;
  const uint32_t packed = pack_bf16(low, high);
  got[0] = to_tf32(low);
  got[1] = packed;
  got[2] = float_to_bits(low_to_float(packed));
  got[3] = float_to_bits(high_to_float(packed));
}

// --- The device's memory, and its errors ---------------------------------------------------------

void require(int error, const char* what) {
  if (error == 0) return;
  std::printf("%s: cudaError %d\n", what, error);
  std::exit(1);
}

template <class T>
T* to_device(const std::vector<T>& values) {
#ifdef __CUDACC__
  void* memory = nullptr;
  require(cudaMalloc(&memory, values.size() * sizeof(T)), "cudaMalloc");
  require(cudaMemcpy(memory, values.data(), values.size() * sizeof(T), cudaMemcpyDefault),
          "cudaMemcpy");
  return static_cast<T*>(memory);
#else
  auto* memory = new T[values.size()];
  for (size_t i = 0; i < values.size(); ++i) memory[i] = values[i];
  return memory;
#endif
}

template <class T>
void from_device(std::vector<T>& values, T* memory) {
#ifdef __CUDACC__
  require(cudaMemcpy(values.data(), memory, values.size() * sizeof(T), cudaMemcpyDefault),
          "cudaMemcpy");
  require(cudaFree(memory), "cudaFree");
#else
  for (size_t i = 0; i < values.size(); ++i) values[i] = memory[i];
  delete[] memory;
#endif
}

void finish(const char* name) {
#ifdef __CUDACC__
  require(cudaDeviceSynchronize(), name);
#else
  const int error = emulator::synchronize();
  if (error != 0) std::printf("%s\n", emulator::take_error().c_str());
  require(error, name);
#endif
}

using Registers = std::vector<uint32_t>;

Registers registers() { return Registers(kWarp * kMost, 0); }

Registers run(void (*kernel)(Trial), const char* name, const Registers& given,
              const std::vector<uint16_t>& shared) {
  Registers got(kWarp * kMost, 0xdeadbeef);
  uint32_t* in = to_device(given);
  uint16_t* matrices = to_device(shared);
  uint32_t* out = to_device(got);
  require(
      launch(kernel, Grid{}, kWarp, shared_bytes<uint16_t>(256), nullptr, Trial{in, matrices, out}),
      name);
  finish(name);
  from_device(got, out);
  Registers ignored(given);
  from_device(ignored, in);
  std::vector<uint16_t> unchanged(shared);
  from_device(unchanged, matrices);
  return got;
}

// --- What must come out --------------------------------------------------------------------------

uint32_t bits(float value) {
  uint32_t result = 0;
  static_assert(sizeof(result) == sizeof(value));
  __builtin_memcpy(&result, &value, sizeof(result));
  return result;
}

bool same(const char* what, int row, int column, uint32_t wanted, uint32_t got) {
  if (wanted == got) return true;
  std::printf("%s: row %d, column %d: wanted %08x, got %08x\n", what, row, column, wanted, got);
  return false;
}

// Small integers that differ along rows and along columns: exact in tf32 and bf16, sums too.
int value_a(int row, int inner) { return (7 * row + 3 * inner) % 17 - 8; }
int value_b(int inner, int column) { return (5 * inner + 11 * column) % 19 - 9; }

// Puts a value where a table says, 32 bits an element or 16.
void place(Registers& given, int first, Owner owner, int value, bool half) {
  const uint32_t whole = bits(static_cast<float>(value));
  uint32_t& target = given[owner.lane * kMost + first + (half ? owner.element / 2 : owner.element)];
  target |= half ? (whole >> 16) << (owner.element % 2 * 16) : whole;
}

bool check_product(const char* name, void (*kernel)(Trial), const char* const* a,
                   const char* const* b, int inner, bool half) {
  Registers given = registers();
  for (int k = 0; k < inner; ++k) {
    for (int row = 0; row < 16; ++row) place(given, 0, owner(a[row], k), value_a(row, k), half);
    for (int column = 0; column < 8; ++column) {
      place(given, 4, owner(b[k], column), value_b(k, column), half);
    }
  }
  const Registers got = run(kernel, name, given, std::vector<uint16_t>(256));
  bool right = true;
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      int sum = 1;
      for (int k = 0; k < inner; ++k) sum += value_a(row, k) * value_b(k, column);
      const Owner holder = owner(kSums[row], column);
      const uint32_t held = got[holder.lane * kMost + holder.element];
      right &= same(name, row, column, bits(static_cast<float>(sum)), held);
    }
  }
  return right;
}

bool check_ldmatrix(const char* name, void (*kernel)(Trial), const char* const* table) {
  std::vector<uint16_t> values(256);
  for (int i = 0; i < 256; ++i) values[i] = static_cast<uint16_t>(1000 + i);
  const Registers got = run(kernel, name, registers(), values);
  bool right = true;
  for (int i = 0; i < 256; ++i) {
    const int matrix = i / 64, row = i / 8 % 8, column = i % 8;
    const Owner holder = owner(table[row], column);
    const uint32_t held = got[holder.lane * kMost + matrix] >> (holder.element * 16) & 0xffff;
    right &= same(name, matrix * 8 + row, column, values[i], held);
  }
  return right;
}

// Bits of floats, and what they are in tf32 (19 bits, ties away from zero) and in bf16 (16 bits,
// ties to even). The hardware may leave what it likes in the bits that tf32 has not.
constexpr uint32_t kConversions[][3] = {
    {0x3f800000, 0x3f800000, 0x3f80}, {0x3f800fff, 0x3f800000, 0x3f80},
    {0x3f801000, 0x3f802000, 0x3f80}, {0xbf801000, 0xbf802000, 0xbf80},
    {0x3f803000, 0x3f804000, 0x3f80}, {0x3f808000, 0x3f808000, 0x3f80},
    {0x3f808001, 0x3f808000, 0x3f81}, {0x3f818000, 0x3f818000, 0x3f82},
    {0x7f7fffff, 0x7f800000, 0x7f80}, {0x80000000, 0x80000000, 0x8000},
};

bool check_conversions() {
  Registers given = registers();
  constexpr int kCases = sizeof(kConversions) / sizeof(kConversions[0]);
  for (int i = 0; i < kCases; ++i) {
    given[i * kMost] = kConversions[i][0];
    given[i * kMost + 1] = kConversions[(i + 1) % kCases][0];
  }
  const Registers got = run(conversion_kernel, "conversions", given, std::vector<uint16_t>(256));
  bool right = true;
  for (int i = 0; i < kCases; ++i) {
    const uint32_t* lane = &got[i * kMost];
    const uint32_t low = kConversions[i][2], high = kConversions[(i + 1) % kCases][2];
    right &= same("to_tf32", i, 0, kConversions[i][1], lane[0] & 0xffffe000);
    right &= same("pack_bf16", i, 0, high << 16 | low, lane[1]);
    right &= same("low_to_float", i, 0, low << 16, lane[2]);
    right &= same("high_to_float", i, 0, high << 16, lane[3]);
  }
  return right;
}

}  // namespace
}  // namespace cwkernels::fragments

int main() {
  using namespace cwkernels::fragments;
  bool right = check_product("mma_tf32", tf32_kernel, kTf32A, kTf32B, 8, false);
  right &= check_product("mma_bf16", bf16_kernel, kBf16A, kBf16B, 16, true);
  right &= check_ldmatrix("ldmatrix", ldmatrix_kernel<false>, kRows);
  right &= check_ldmatrix("ldmatrix_transposed", ldmatrix_kernel<true>, kRowsTransposed);
  right &= check_conversions();
  std::printf(right ? "fragments: as the tables say\n" : "fragments: wrong\n");
  return right ? 0 : 1;
}
