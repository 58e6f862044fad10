#pragma once
#include "portable.cuh"

// Neighbouring elements that one thread moves at once: 16 bytes, or a single element where a
// tensor's channels or strides do not allow it.
namespace cwkernels {

template <class T, int kCount>
struct alignas(kCount * sizeof(T)) Lanes {
  T values[kCount];

  __device__ __forceinline__ T& operator[](int i) { return values[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return values[i]; }
};

template <class T>
constexpr int kWideLanes = 16 / static_cast<int>(sizeof(T));

template <int kCount, class T>
__device__ __forceinline__ Lanes<T, kCount> load_lanes(const T* from) {
  return *reinterpret_cast<const Lanes<T, kCount>*>(from);
}
template <int kCount, class T>
__device__ __forceinline__ void store_lanes(T* to, const Lanes<T, kCount>& lanes) {
  *reinterpret_cast<Lanes<T, kCount>*>(to) = lanes;
}

// Whether a tensor may be moved in wide lanes, by its first element. Null may.
inline bool starts_wide(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

}  // namespace cwkernels
