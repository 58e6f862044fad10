#pragma once
#include <cmath>

#include "portable.cuh"
#include "reduce.cuh"

// What kernels do to a value as they read it: normalise, rectify, or turn the gradient of a
// normalised value into that of the raw one. The coefficients of a channel are a few registers,
// made once by each thread or block from the statistics.
namespace cwkernels {

// Keeps NaN, as torch's does.
template <class T>
__device__ __forceinline__ T rectify(T value) {
  return value < T(0) ? T(0) : value;
}

// normalised = (raw - mean) * scale + shift, with scale = gamma / sqrt(variance + eps).
template <class T>
struct Norm {
  T mean, scale, shift;

  __device__ __forceinline__ T operator()(T raw) const { return (raw - mean) * scale + shift; }
};

// gradient of raw = grad * scale + (raw - mean) * slope + offset.
template <class T>
struct NormBackward {
  T mean, scale, slope, offset;

  __device__ __forceinline__ T operator()(T grad, T raw) const {
    return grad * scale + ((raw - mean) * slope + offset);
  }
};

// The channels of one architecture's tensor: what their coefficients are made of.
template <class T>
struct Channels {
  const T* mean;      // [C]
  const T* variance;  // [C], biased
  const T* gamma;     // [C] or null, with beta
  const T* beta;
  T eps;

  // Square root and division as IEEE rounds them: rsqrtf is wrong in the last two bits.
  __device__ __forceinline__ T rstd(int64_t c) const {
    return T(1) / std::sqrt(load_global(variance + c) + eps);
  }
  __device__ __forceinline__ T scale_of(int64_t c) const {
    return gamma ? load_global(gamma + c) : T(1);
  }
  __device__ __forceinline__ Norm<T> norm(int64_t c) const {
    return {load_global(mean + c), scale_of(c) * rstd(c), beta ? load_global(beta + c) : T(0)};
  }
  // From the sums over `count` values of the gradient and of the gradient times (raw - mean). In
  // training the gradient goes through mean and variance too; in evaluation they are constants.
  __device__ __forceinline__ NormBackward<T> backward(int64_t c, const Sums<T>& sums, T count,
                                                      bool training) const {
    const T own = rstd(c), scale = scale_of(c) * own;
    if (!training) return {load_global(mean + c), scale, T(0), T(0)};
    return {load_global(mean + c), scale, -scale * own * own * (sums.second / count),
            -scale * (sums.first / count)};
  }
  // The gradients of gamma and beta from the same sums.
  __device__ __forceinline__ T gamma_gradient(int64_t c, const Sums<T>& sums) const {
    return rounded_product(sums.second, rstd(c));
  }
  __device__ __forceinline__ T beta_gradient(const Sums<T>& sums) const { return sums.first; }
};

// The coefficients of a channel whose moments a launch before left as partial results.
template <class T>
__device__ __forceinline__ Norm<T> norm_of(const Moments<T>& moments, T gamma, T beta, T eps) {
  return {moments.mean, gamma / std::sqrt(moments.variance() + eps), beta};
}

}  // namespace cwkernels
