#pragma once
#include "lanes.cuh"

// What the two kernels of SGD do to the elements of a row. A block takes kSgdPiece neighbouring
// ones, four of them a thread, by 16 bytes where the row allows it.
namespace cwkernels {

constexpr int kSgdThreads = 256;
constexpr int64_t kSgdPiece = kSgdThreads * 4;

template <class T>
struct SgdRates {
  T lr, momentum, weight_decay;
};

template <class T, int kLanes>
__device__ __forceinline__ void move_by(Lanes<T, kLanes> grad, T* weight, T* momentum,
                                        const SgdRates<T>& rates) {
  Lanes<T, kLanes> w = load_lanes<kLanes>(weight), m = load_lanes<kLanes>(momentum);
#pragma unroll
  for (int k = 0; k < kLanes; ++k) {
    // Without decay a weight that is not finite must not reach the momentum.
    if (rates.weight_decay != T(0)) grad[k] += w[k] * rates.weight_decay;
    m[k] = m[k] * rates.momentum + grad[k];
    w[k] -= m[k] * rates.lr;
  }
  store_lanes(momentum, m);
  store_lanes(weight, w);
}

// Where rows of `size` elements may be moved by 16 bytes: each begins and ends at a multiple of
// them.
template <class T>
__device__ __forceinline__ bool is_wide(const void* weight, const void* momentum, const void* grad,
                                        int64_t size) {
  const uintptr_t bits = reinterpret_cast<uintptr_t>(weight) |
                         reinterpret_cast<uintptr_t>(momentum) | reinterpret_cast<uintptr_t>(grad) |
                         static_cast<uintptr_t>(size * static_cast<int64_t>(sizeof(T)));
  return bits % 16 == 0;
}

}  // namespace cwkernels
