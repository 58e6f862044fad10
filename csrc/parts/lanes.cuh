#pragma once
#include "portable.cuh"

// Neighbouring elements that one thread moves at once: 16 bytes, or a single element where a
// tensor's channels or strides do not allow it. Activations may lie as bf16: what is loaded of them
// is widened, what is stored rounded to nearest even, and all between is float.
namespace cwkernels {

// What an element of a tensor is computed in.
template <class Stored>
struct ComputedOf {
  using Type = Stored;
};
template <>
struct ComputedOf<bf16> {
  using Type = float;
};
template <class Stored>
using Computed = typename ComputedOf<Stored>::Type;

template <class T>
__device__ __forceinline__ T load_stored(const T* from) {
  return *from;
}
__device__ __forceinline__ float load_stored(const bf16* from) { return to_float(*from); }
template <class T>
__device__ __forceinline__ void store_stored(T* to, T value) {
  *to = value;
}
__device__ __forceinline__ void store_stored(bf16* to, float value) {
  to->bits = static_cast<uint16_t>(pack_bf16(value, 0.0f));
}

template <class T, int kCount>
struct alignas(kCount * sizeof(T)) Lanes {
  T values[kCount];

  __device__ __forceinline__ T& operator[](int i) { return values[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return values[i]; }
};

// As many as are 16 bytes when they are computed: eight bf16 would take the coefficients and sums
// of eight channels into a thread's registers.
template <class Stored>
constexpr int kWideLanes = 16 / static_cast<int>(sizeof(Computed<Stored>));

template <int kCount, class T>
__device__ __forceinline__ Lanes<T, kCount> load_lanes(const T* from) {
  return *reinterpret_cast<const Lanes<T, kCount>*>(from);
}
template <int kCount, class T>
__device__ __forceinline__ void store_lanes(T* to, const Lanes<T, kCount>& lanes) {
  *reinterpret_cast<Lanes<T, kCount>*>(to) = lanes;
}
template <int kCount>
__device__ __forceinline__ Lanes<float, kCount> load_lanes(const bf16* from) {
  Lanes<float, kCount> lanes;
  if constexpr (kCount == 1) {
    lanes[0] = load_stored(from);
  } else {
    const auto packed = *reinterpret_cast<const Lanes<uint32_t, kCount / 2>*>(from);
#pragma unroll
    for (int i = 0; i < kCount; i += 2) {
      lanes[i] = low_to_float(packed[i / 2]);
      lanes[i + 1] = high_to_float(packed[i / 2]);
    }
  }
  return lanes;
}
template <int kCount>
__device__ __forceinline__ void store_lanes(bf16* to, const Lanes<float, kCount>& lanes) {
  if constexpr (kCount == 1) {
    store_stored(to, lanes[0]);
  } else {
    Lanes<uint32_t, kCount / 2> packed;
#pragma unroll
    for (int i = 0; i < kCount; i += 2) packed[i / 2] = pack_bf16(lanes[i], lanes[i + 1]);
    *reinterpret_cast<Lanes<uint32_t, kCount / 2>*>(to) = packed;
  }
}
// As store_pair of floats.
__device__ __forceinline__ void store_pair(bf16* to, float first, float second) {
  store_lanes(to, Lanes<float, 2>{{first, second}});
}

// Whether a tensor may be moved in wide lanes, by its first element. Null may.
inline bool starts_wide(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

}  // namespace cwkernels
