#pragma once
#include "simd.h"

// Winograd's F(4x4, 3x3): 4 x 4 outputs of a 3 x 3 convolution from 6 x 6 inputs by 36 products for
// each pair of channels instead of 144. As polynomials: inputs and weights are evaluated at six
// points, multiplied there, and the outputs are what interpolates the products. With matrices
//   Y = A^T [ (G g G^T) * (B^T x B) ] A          and for the gradient of the weights
//   dg = G^T [ sum over tiles (B^T x B) * (A dY A^T) ] G.
//
// The points are 0, a, -a, b, -b and infinity. A product of sums loses what the sums cancel, so a
// and b decide the error: relative to float64, over 64 images at 16@32x32, 32@16x16 and 64@8x8,
// 5-8e-7 forward for 0.625 and 1.5, 1.0-1.8e-6 for the usual 1 and 2 (a direct sum has 2e-7).
// 0.625 and 1.5, their squares, cubes and products have few bits, so no coefficient of A and B is
// rounded.
namespace cwkernels::CWK_ISA {

constexpr int kWinogradOutputs = 4;  // a side of a tile
constexpr int kWinogradTaps = 3;     // a side of the weights
constexpr int kWinogradInputs = 6;   // a side of a tile's inputs: points
constexpr int kFrequencies = kWinogradInputs * kWinogradInputs;
constexpr int kWeightTaps = kWinogradTaps * kWinogradTaps;

constexpr double kPointA = 0.625, kPointB = 1.5;

// The points in the order 0, infinity, a, -a, b, -b: three pairs that share their arithmetic.
constexpr int kPairs = 3;

template <class T>
struct WinogradPoints {
  static constexpr T a = kPointA, a2 = kPointA * kPointA, a3 = a2 * kPointA;
  static constexpr T b = kPointB, b2 = kPointB * kPointB, b3 = b2 * kPointB;
  static constexpr T product = kPointA * kPointA * kPointB * kPointB;
  static constexpr T sum = kPointA * kPointA + kPointB * kPointB;
  // Lagrange's denominators, all in G: at 0, at a and -a, at b and -b.
  static constexpr double denominator_a =
      2 * kPointA * kPointA * (kPointA * kPointA - kPointB * kPointB);
  static constexpr double denominator_b =
      2 * kPointB * kPointB * (kPointB * kPointB - kPointA * kPointA);
  static constexpr T at_0 = 1 / (kPointA * kPointA * kPointB * kPointB);
  static constexpr T at_a = 1 / denominator_a, at_b = 1 / denominator_b;
};

// What a pair of points shares: the point, its square and the square of the other pair's.
template <class T, int Pair>
struct PairOf {
  using Points = WinogradPoints<T>;
  static constexpr T point = Pair == 1 ? Points::a : Points::b;
  static constexpr T square = Pair == 1 ? Points::a2 : Points::b2;
  static constexpr T other = Pair == 1 ? Points::b2 : Points::a2;
};

// B^T at both points of a pair; x(i) is one of six inputs. 4 operations a pair: 12 for six values.
template <class T, int Pair, class X>
CWK_INLINE void evaluate_inputs(const X& x, Vector<T>& first, Vector<T>& second) {
  using Points = WinogradPoints<T>;
  if constexpr (Pair == 0) {
    first = x(0) * Points::product + (x(4) - x(2) * Points::sum);
    second = x(1) * Points::product + (x(5) - x(3) * Points::sum);
  } else {
    const Vector<T> even = x(4) - x(2) * PairOf<T, Pair>::other;
    const Vector<T> odd = x(3) - x(1) * PairOf<T, Pair>::other;
    first = even + odd * PairOf<T, Pair>::point;
    second = even - odd * PairOf<T, Pair>::point;
  }
}

// A at both points of a pair; y(i) is one of four gradients.
template <class T, int Pair, class Y>
CWK_INLINE void evaluate_gradients(const Y& y, Vector<T>& first, Vector<T>& second) {
  if constexpr (Pair == 0) {
    first = y(0);
    second = y(3);
  } else {
    const Vector<T> even = y(0) + y(2) * PairOf<T, Pair>::square;
    const Vector<T> odd = y(1) + y(3) * PairOf<T, Pair>::square;
    first = even + odd * PairOf<T, Pair>::point;
    second = even - odd * PairOf<T, Pair>::point;
  }
}

// G at all points.
template <class T>
CWK_INLINE void evaluate_weights(const Vector<T> (&g)[kWinogradTaps],
                                 Vector<T> (&out)[kWinogradInputs]) {
  using Points = WinogradPoints<T>;
  const Vector<T> even_a = (g[0] + g[2] * Points::a2) * Points::at_a;
  const Vector<T> even_b = (g[0] + g[2] * Points::b2) * Points::at_b;
  const Vector<T> odd_a = g[1] * T(Points::a * Points::at_a);
  const Vector<T> odd_b = g[1] * T(Points::b * Points::at_b);
  out[0] = g[0] * Points::at_0;
  out[1] = g[2];
  out[2] = even_a + odd_a;
  out[3] = even_a - odd_a;
  out[4] = even_b + odd_b;
  out[5] = even_b - odd_b;
}

// A^T: outputs 0 and 2 (Half 0) need the sums of the pairs, 1 and 3 (Half 1) their differences.
template <class T, int Half, class M>
CWK_INLINE void interpolate(const M& m, Vector<T>& first, Vector<T>& second) {
  using Points = WinogradPoints<T>;
  if constexpr (Half == 0) {
    const Vector<T> sum_a = m(2) + m(3), sum_b = m(4) + m(5);
    first = m(0) + (sum_a + sum_b);
    second = sum_a * Points::a2 + sum_b * Points::b2;
  } else {
    const Vector<T> odd_a = m(2) - m(3), odd_b = m(4) - m(5);
    first = odd_a * Points::a + odd_b * Points::b;
    second = odd_a * Points::a3 + (odd_b * Points::b3 + m(1));
  }
}

// G^T.
template <class T>
CWK_INLINE void interpolate_weights(const Vector<T> (&s)[kWinogradInputs],
                                    Vector<T> (&out)[kWinogradTaps]) {
  using Points = WinogradPoints<T>;
  const Vector<T> sum_a = (s[2] + s[3]) * Points::at_a, sum_b = (s[4] + s[5]) * Points::at_b;
  const Vector<T> odd_a = (s[2] - s[3]) * Points::at_a, odd_b = (s[4] - s[5]) * Points::at_b;
  out[0] = s[0] * Points::at_0 + (sum_a + sum_b);
  out[1] = odd_a * Points::a + odd_b * Points::b;
  out[2] = sum_a * Points::a2 + (sum_b * Points::b2 + s[1]);
}

// Six values along a row, evaluated by pairs and stored `stride` elements apart.
template <class T, class Evaluate>
CWK_INLINE void store_points(const Evaluate& evaluate, T* to, int64_t stride) {
  unroll<kPairs>([&](auto pair) {
    Vector<T> first, second;
    evaluate(pair, first, second);
    store(to + 2 * pair * stride, first);
    store(to + (2 * pair + 1) * stride, second);
  });
}

// B^T x B for one tile and one vector of channels: x(i, j) are its 6 x 6 inputs. A pair of rows at
// a time, 12 vectors, stays in 16 registers; 144 operations, 84 loads and 36 stores.
template <class T, class X>
CWK_INLINE void transform_inputs(const X& x, T* to, int64_t stride) {
  unroll<kPairs>([&](auto pair) {
    Vector<T> rows[2][kWinogradInputs];
    unroll<kWinogradInputs>([&](auto j) {
      evaluate_inputs<T, pair.value>([&](int i) { return x(i, j); }, rows[0][j], rows[1][j]);
    });
    unroll<2>([&](auto half) {
      const auto across = [&](auto points, Vector<T>& first, Vector<T>& second) {
        evaluate_inputs<T, points.value>([&](int j) { return rows[half][j]; }, first, second);
      };
      store_points<T>(across, to + (2 * pair + half) * kWinogradInputs * stride, stride);
    });
  });
}

// A y A^T for one tile of 4 x 4 gradients: 80 operations, 40 loads, 36 stores.
template <class T, class Y>
CWK_INLINE void transform_gradients(const Y& y, T* to, int64_t stride) {
  unroll<kPairs>([&](auto pair) {
    Vector<T> rows[2][kWinogradOutputs];
    unroll<kWinogradOutputs>([&](auto j) {
      evaluate_gradients<T, pair.value>([&](int i) { return y(i, j); }, rows[0][j], rows[1][j]);
    });
    unroll<2>([&](auto half) {
      const auto across = [&](auto points, Vector<T>& first, Vector<T>& second) {
        evaluate_gradients<T, points.value>([&](int j) { return rows[half][j]; }, first, second);
      };
      store_points<T>(across, to + (2 * pair + half) * kWinogradInputs * stride, stride);
    });
  });
}

// A^T m A for one tile and one vector of outputs: m(i, j) are its products, finish(i, j, value)
// takes its 4 x 4 outputs. Two rows at a time; 120 operations, 60 loads.
template <class T, class M, class Finish>
CWK_INLINE void transform_products(const M& m, const Finish& finish) {
  unroll<2>([&](auto half) {
    Vector<T> rows[2][kWinogradInputs];
    unroll<kWinogradInputs>([&](auto j) {
      interpolate<T, half.value>([&](int i) { return m(i, j); }, rows[0][j], rows[1][j]);
    });
    unroll<2>([&](auto r) {
      unroll<2>([&](auto across) {
        Vector<T> first, second;
        interpolate<T, across.value>([&](int j) { return rows[r][j]; }, first, second);
        finish(half + 2 * r, int{across}, first);
        finish(half + 2 * r, across + 2, second);
      });
    });
  });
}

// G g G^T for one source channel and one vector of targets: taps(t) are the 3 x 3 weights.
template <class T, class Taps>
CWK_INLINE void transform_weights(const Taps& taps, T* to, int64_t stride) {
  Vector<T> rows[kWinogradInputs][kWinogradTaps];
  unroll<kWinogradTaps>([&](auto j) {
    Vector<T> column[kWinogradTaps], points[kWinogradInputs];
    unroll<kWinogradTaps>([&](auto i) { column[i] = taps(i * kWinogradTaps + j); });
    evaluate_weights<T>(column, points);
    unroll<kWinogradInputs>([&](auto i) { rows[i][j] = points[i]; });
  });
  unroll<kWinogradInputs>([&](auto i) {
    Vector<T> points[kWinogradInputs];
    evaluate_weights<T>(rows[i], points);
    unroll<kWinogradInputs>(
        [&](auto j) { store(to + (i * kWinogradInputs + j) * stride, points[j]); });
  });
}

// G^T s G: s(f) are the 36 sums, finish(t, value) takes the 3 x 3 gradients.
template <class T, class S, class Finish>
CWK_INLINE void transform_sums(const S& s, const Finish& finish) {
  Vector<T> rows[kWinogradTaps][kWinogradInputs];
  unroll<kWinogradInputs>([&](auto j) {
    Vector<T> column[kWinogradInputs], taps[kWinogradTaps];
    unroll<kWinogradInputs>([&](auto i) { column[i] = s(i * kWinogradInputs + j); });
    interpolate_weights<T>(column, taps);
    unroll<kWinogradTaps>([&](auto i) { rows[i][j] = taps[i]; });
  });
  unroll<kWinogradTaps>([&](auto i) {
    Vector<T> taps[kWinogradTaps];
    interpolate_weights<T>(rows[i], taps);
    unroll<kWinogradTaps>([&](auto j) { finish(i * kWinogradTaps + j, taps[j]); });
  });
}

}  // namespace cwkernels::CWK_ISA
