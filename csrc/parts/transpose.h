#pragma once
#include "simd.h"

// Squares of kLanes x kLanes values, transposed in registers.
namespace cwkernels::CWK_ISA {

template <int... I>
struct LaneList {};
template <int N, int... I>
struct LanesUpTo : LanesUpTo<N - 1, N - 1, I...> {};
template <int... I>
struct LanesUpTo<0, I...> {
  using type = LaneList<I...>;
};
template <class T>
using AllLanes = typename LanesUpTo<kLanes<T>>::type;

// Of two rows that are D apart: what the first keeps and what comes to it from the second (or the
// other way round), lanes by bit D of their number.
template <class T, int D, bool Second, int... I>
CWK_INLINE Vector<T> exchange_lanes(Vector<T> a, Vector<T> b, LaneList<I...>) {
  return __builtin_shufflevector(
      a, b, ((I & D) != 0 ? kLanes<T> + I - (Second ? 0 : D) : I + (Second ? D : 0))...);
}

// One step for each bit of a lane's number, each of which swaps that bit of row and lane: 64
// shuffles of two registers for 16 x 16.
template <class T, int D = 1>
CWK_INLINE void transpose(Vector<T> (&rows)[kLanes<T>]) {
  if constexpr (D < kLanes<T>) {
    unroll<kLanes<T>>([&](auto i) {
      if constexpr ((i & D) == 0) {
        const Vector<T> first = rows[i], second = rows[i + D];
        rows[i] = exchange_lanes<T, D, false>(first, second, AllLanes<T>{});
        rows[i + D] = exchange_lanes<T, D, true>(first, second, AllLanes<T>{});
      }
    });
    transpose<T, 2 * D>(rows);
  }
}

}  // namespace cwkernels::CWK_ISA
