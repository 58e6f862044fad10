#pragma once
#include "portable.cuh"

// Products of small matrices by a warp, and how precise they are. A fragment is what one lane holds
// of an operand: of mma.m16n8k8, lane l = 4 g + t has
//   a (16 rows, 8 deep): 0 (g, t)  1 (g + 8, t)  2 (g, t + 4)  3 (g + 8, t + 4)
//   b (8 deep, 8 columns): 0 (t, g)  1 (t + 4, g)
//   d (16 rows, 8 columns): 0 (g, 2t)  1 (g, 2t + 1)  2 (g + 8, 2t)  3 (g + 8, 2t + 1).
namespace cwkernels {

constexpr int kMmaRows = 16, kMmaColumns = 8, kMmaDepth = 8;

// A precision says how activations are stored, what shared memory holds of a value (`hold`, float
// bits), how a fragment of those bits is an operand, and how two operands are multiplied.

// Both factors rounded to 11 bits, once, on their way to shared memory: a relative error of 2^-12
// in each factor on average, and none for small integers.
struct Tf32 {
  using Stored = float;
  static constexpr int kProducts = 1;

  template <int kValues>
  struct Operand {
    uint32_t bits[kValues];
  };

  __device__ __forceinline__ static float hold(float value) {
    return bits_to_float(to_tf32(value));
  }
  template <int kValues>
  __device__ __forceinline__ static Operand<kValues> operand(const uint32_t (&raw)[kValues]) {
    Operand<kValues> whole;
#pragma unroll
    for (int i = 0; i < kValues; ++i) whole.bits[i] = raw[i];
    return whole;
  }
  __device__ __forceinline__ static void multiply(float (&d)[4], const Operand<4>& a,
                                                  const Operand<2>& b) {
    mma_tf32(d, a.bits, b.bits);
  }
};

// Activations that lie as bf16. The 8 bits of one are exact in tf32, and weights keep 11.
struct Bf16 : Tf32 {
  using Stored = bf16;
};

// float32 by three products: a value is the sum of two of 11 bits, and what is left out is 2^-22 of
// a product. The matrix units round toward zero when they add, a bias that grows with the number of
// additions, so 8 products are summed by them from zero, the small ones first, and added to the
// total as the CUDA cores round, to nearest. An infinity has no finite rest: it becomes NaN.
struct Tf32x3 {
  using Stored = float;
  static constexpr int kProducts = 3;

  template <int kValues>
  struct Operand {
    uint32_t big[kValues], small[kValues];
  };

  __device__ __forceinline__ static float hold(float value) { return value; }
  template <int kValues>
  __device__ __forceinline__ static Operand<kValues> operand(const uint32_t (&raw)[kValues]) {
    Operand<kValues> split;
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      split.big[i] = to_tf32(bits_to_float(raw[i]));
      split.small[i] = to_tf32(bits_to_float(raw[i]) - bits_to_float(split.big[i]));
    }
    return split;
  }
  __device__ __forceinline__ static void multiply(float (&d)[4], const Operand<4>& a,
                                                  const Operand<2>& b) {
    float sum[4] = {0, 0, 0, 0};
    mma_tf32(sum, a.small, b.big);
    mma_tf32(sum, a.big, b.small);
    mma_tf32(sum, a.big, b.big);
#pragma unroll
    for (int i = 0; i < 4; ++i) d[i] += sum[i];
  }
};

// f(precision) for the products of a call: `winograd` stands for precision "high".
template <class Params, class F>
auto with_precision(const Params& p, const F& f) {
  if (p.bf16_images) return f(Bf16{});
  return p.winograd ? f(Tf32{}) : f(Tf32x3{});
}

// A warp's part of a product: kM x kN fragments, 16 kM rows and 8 kN columns.
template <int kM, int kN>
struct Accumulators {
  float values[kM][kN][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) values[i][j][e] = 0.0f;
      }
    }
  }
};

// Where a lane points ldmatrix, in rows and in values of four bytes: at an a of 16 rows and 8 deep,
// and at two b beside each other, 16 columns (which lie as rows) and 8 deep.
__device__ __forceinline__ int lane_row_of_a() { return lane() % 16; }
__device__ __forceinline__ int lane_depth_of_a() { return lane() / 16 * 4; }
__device__ __forceinline__ int lane_row_of_b() { return lane() % 8 + lane() / 16 * 8; }
__device__ __forceinline__ int lane_depth_of_b() { return lane() / 8 % 2 * 4; }

// Adds the products of 8 deep: `a[i]` and `b` are shared memory where this lane points ldmatrix,
// the columns of b `b_stride` values apart. kM + kN / 2 loads of 512 bytes for kM kN products; rows
// 4 mod 8 values apart lie in different banks.
template <class Precision, int kM, int kN>
__device__ __forceinline__ void multiply_rows(Accumulators<kM, kN>& sums, const float* (&a)[kM],
                                              const float* b, int b_stride) {
  static_assert(kN % 2 == 0, "one ldmatrix brings two b");
  typename Precision::template Operand<4> rows[kM];
#pragma unroll
  for (int i = 0; i < kM; ++i) {
    uint32_t raw[4];
    ldmatrix(raw, a[i]);
    rows[i] = Precision::operand(raw);
  }
#pragma unroll
  for (int j = 0; j < kN; j += 2) {
    uint32_t raw[4];
    ldmatrix(raw, b + j * kMmaColumns * b_stride);
    const uint32_t left[2] = {raw[0], raw[1]}, right[2] = {raw[2], raw[3]};
    const auto first = Precision::operand(left), second = Precision::operand(right);
#pragma unroll
    for (int i = 0; i < kM; ++i) Precision::multiply(sums.values[i][j], rows[i], first);
#pragma unroll
    for (int i = 0; i < kM; ++i) Precision::multiply(sums.values[i][j + 1], rows[i], second);
  }
}

// The operands of a product over pixels, which lie apart: row or column c of depth t is at
// `near[c]`, of depth t + 4 at `far[c]`. Rows 8 or 24 mod 32 values apart lie in different banks.
template <class Precision>
__device__ __forceinline__ typename Precision::template Operand<4> columns_of_a(const float* near,
                                                                                const float* far) {
  const int g = lane() / 4;
  const uint32_t raw[4] = {float_to_bits(near[g]), float_to_bits(near[g + 8]),
                           float_to_bits(far[g]), float_to_bits(far[g + 8])};
  return Precision::operand(raw);
}
template <class Precision>
__device__ __forceinline__ typename Precision::template Operand<2> columns_of_b(const float* near,
                                                                                const float* far) {
  const int g = lane() / 4;
  const uint32_t raw[2] = {float_to_bits(near[g]), float_to_bits(far[g])};
  return Precision::operand(raw);
}

}  // namespace cwkernels
