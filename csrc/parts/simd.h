#pragma once
#include <cstdint>

// Vectors of the instruction set that this file is compiled for, by the compiler's own vector
// types: the same source is SSE2, AVX2 + FMA and AVX-512, and `a * b + c` contracts to an FMA where
// there is one. No intrinsics anywhere.
#ifndef CWK_ISA
#error "simd.h is for files that are compiled once per instruction set"
#endif

#define CWK_INLINE inline __attribute__((always_inline))
// For the function that holds a kernel's loops: inlines all that is called in it, lambdas too.
// Without it the compiler calls the long ones, with the accumulators in memory. A build with
// sanitizers defines it as nothing: one function of all loops takes minutes to compile there.
#ifndef CWK_FLATTEN
#define CWK_FLATTEN __attribute__((flatten))
#endif

// The same behind a lambda's parameters.
#define CWK_INLINE_LAMBDA __attribute__((always_inline))

namespace cwkernels::CWK_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
#else
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 16;
#endif

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef float unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef double unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
};

template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
CWK_INLINE Vector<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(p);
}

template <class T>
CWK_INLINE void store(T* p, Vector<T> v) {
  *reinterpret_cast<typename VectorOf<T>::unaligned*>(p) = v;
}

// Stores past the caches what is not read again soon, without reading its cache line first; `p` is
// aligned to a vector. `drain` before another thread may read it.
#ifdef __x86_64__
CWK_INLINE void stream(float* p, Vector<float> v) {
#if defined(__AVX512F__)
  __builtin_ia32_movntps512(p, v);
#elif defined(__AVX2__)
  __builtin_ia32_movntps256(p, v);
#else
  __builtin_ia32_movntps(p, v);
#endif
}
CWK_INLINE void stream(double* p, Vector<double> v) {
#if defined(__AVX512F__)
  __builtin_ia32_movntpd512(p, v);
#elif defined(__AVX2__)
  __builtin_ia32_movntpd256(p, v);
#else
  __builtin_ia32_movntpd(p, v);
#endif
}
CWK_INLINE void drain() { __builtin_ia32_sfence(); }
#else
template <class T>
CWK_INLINE void stream(T* p, Vector<T> v) {
  store(p, v);
}
CWK_INLINE void drain() {}
#endif

// The first `count` lanes only: for a last vector that is not full.
template <class T>
CWK_INLINE void store_part(T* p, Vector<T> v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}

// Asks for the cache line at `p`, which need not exist, in L2 and L1.
CWK_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }

// Subtracting zero is the identity, adding it is not (of -0), so this alone folds to a broadcast.
template <class T>
CWK_INLINE Vector<T> broadcast(T value) {
  return value - Vector<T>{};
}

template <int I>
struct Index {
  static constexpr int value = I;
  constexpr operator int() const { return I; }
};

// f(Index<0>{}), ..., f(Index<N - 1>{}): a loop whose accumulators the compiler must keep in
// registers, as every index is a constant.
template <int N, class F>
CWK_INLINE void unroll(const F& f) {
  if constexpr (N > 0) {
    unroll<N - 1>(f);
    f(Index<N - 1>{});
  }
}

template <class T>
CWK_INLINE void clear(T* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = T(0);
}

CWK_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
CWK_INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
CWK_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
CWK_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace cwkernels::CWK_ISA
