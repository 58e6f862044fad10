#pragma once
#include "simd.h"

// What kernels do to a value as they read it: rectify, normalise, or turn the gradient of a
// normalised value into that of the raw one. A loader gives the vector of channels from `c` on of
// the pixel whose channels begin `at` elements into the tensor; `left` is how many channels there
// are from `c` on, and lanes past them are zero. `prefetch` asks for what that will read. For a run
// of pixels at the same channels, `channel` gives a function of `at` alone, with the coefficients
// in registers, which a store between the pixels does not have read again.
namespace cwkernels::CWK_ISA {

// The first `count` lanes, zeros behind: for a last vector that is not full.
template <class T>
CWK_INLINE Vector<T> load_part(const T* p, int64_t count) {
  Vector<T> v{};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
}

template <class T>
CWK_INLINE Vector<T> load_channels(const T* p, int64_t left) {
  return left >= kLanes<T> ? load(p) : load_part(p, left);
}

template <class T>
CWK_INLINE void store_channels(T* p, Vector<T> v, int64_t left) {
  if (left >= kLanes<T>) return store(p, v);
  store_part(p, v, left);
}

// Whether `count` channels of each pixel of `channels` from `p` on are whole cache lines: half a
// line, streamed, is a line read and written.
template <class T>
CWK_INLINE bool streams(const T* p, int64_t channels, int64_t count) {
  constexpr int64_t kLine = 64, kValues = kLine / sizeof(T);
  return reinterpret_cast<uintptr_t>(p) % kLine == 0 && channels % kValues == 0 &&
         count % kValues == 0;
}

// Keeps NaN, as torch's does.
template <class T>
CWK_INLINE Vector<T> rectify(Vector<T> v) {
  return v < Vector<T>{} ? Vector<T>{} : v;
}

// Coefficients of batch norms lie in arrays of whole vectors, zeros behind the last channel.
template <class T>
CWK_INLINE int64_t padded_channels(int64_t channels) {
  return round_up(channels, kLanes<T>);
}

// normalised = (raw - mean) * scale + shift, with scale = gamma / sqrt(variance + eps).
template <class T>
struct Norm {
  const T* mean;
  const T* scale;
  const T* shift;

  CWK_INLINE Vector<T> operator()(Vector<T> raw, int64_t c) const {
    return (raw - load(mean + c)) * load(scale + c) + load(shift + c);
  }
  CWK_INLINE auto channel(int64_t c) const {
    const Vector<T> m = load(mean + c), s = load(scale + c), b = load(shift + c);
    return [=](Vector<T> raw) CWK_INLINE_LAMBDA { return (raw - m) * s + b; };
  }
};

// gradient of raw = grad * scale + (raw - mean) * slope + offset.
template <class T>
struct NormBackward {
  const T* mean;
  const T* scale;
  const T* slope;
  const T* offset;

  CWK_INLINE Vector<T> operator()(Vector<T> grad, Vector<T> raw, int64_t c) const {
    return grad * load(scale + c) + ((raw - load(mean + c)) * load(slope + c) + load(offset + c));
  }
  CWK_INLINE auto channel(int64_t c) const {
    const Vector<T> m = load(mean + c), s = load(scale + c), k = load(slope + c);
    const Vector<T> b = load(offset + c);
    return [=](Vector<T> grad, Vector<T> raw)
               CWK_INLINE_LAMBDA { return grad * s + ((raw - m) * k + b); };
  }
};

template <class T>
struct LoadPlain {
  static constexpr bool kCopies = true;

  const T* data;

  CWK_INLINE Vector<T> operator()(int64_t at, int64_t c, int64_t left) const {
    return load_channels(data + at + c, left);
  }
  CWK_INLINE auto channel(int64_t c, int64_t left) const {
    return [=, from = data + c](int64_t at)
               CWK_INLINE_LAMBDA { return load_channels(from + at, left); };
  }
  CWK_INLINE void prefetch(int64_t at) const { CWK_ISA::prefetch(data + at); }
};

template <class T>
struct LoadNormalized {
  static constexpr bool kCopies = false;

  const T* data;
  Norm<T> norm;

  CWK_INLINE Vector<T> operator()(int64_t at, int64_t c, int64_t left) const {
    return norm(load_channels(data + at + c, left), c);
  }
  CWK_INLINE auto channel(int64_t c, int64_t left) const {
    return [=, from = data + c, own = norm.channel(c)](int64_t at)
               CWK_INLINE_LAMBDA { return own(load_channels(from + at, left)); };
  }
  CWK_INLINE void prefetch(int64_t at) const { CWK_ISA::prefetch(data + at); }
};

template <class T, class Inner>
struct LoadRectified {
  static constexpr bool kCopies = false;

  Inner inner;

  CWK_INLINE Vector<T> operator()(int64_t at, int64_t c, int64_t left) const {
    return rectify<T>(inner(at, c, left));
  }
  CWK_INLINE auto channel(int64_t c, int64_t left) const {
    return [own = inner.channel(c, left)](int64_t at)
               CWK_INLINE_LAMBDA { return rectify<T>(own(at)); };
  }
  CWK_INLINE void prefetch(int64_t at) const { inner.prefetch(at); }
};

// The average of 2 x 2 pixels, the first of which is addressed.
template <class T, class Inner>
struct LoadAveraged {
  static constexpr bool kCopies = false;

  Inner inner;
  int64_t row, column;  // strides in elements

  CWK_INLINE Vector<T> operator()(int64_t at, int64_t c, int64_t left) const {
    const Vector<T> above = inner(at, c, left) + inner(at + column, c, left);
    const Vector<T> below = inner(at + row, c, left) + inner(at + row + column, c, left);
    return (above + below) * broadcast(T(0.25));
  }
  CWK_INLINE auto channel(int64_t c, int64_t left) const {
    return [own = inner.channel(c, left), row = row, column = column](int64_t at)
               CWK_INLINE_LAMBDA {
                 const Vector<T> above = own(at) + own(at + column);
                 const Vector<T> below = own(at + row) + own(at + row + column);
                 return (above + below) * broadcast(T(0.25));
               };
  }
  CWK_INLINE void prefetch(int64_t at) const {
    inner.prefetch(at);
    inner.prefetch(at + row);
  }
};

// The gradient of a raw value from that of the normalised one.
template <class T>
struct LoadNormGradient {
  static constexpr bool kCopies = false;

  const T* grad;
  const T* raw;
  NormBackward<T> backward;

  CWK_INLINE Vector<T> operator()(int64_t at, int64_t c, int64_t left) const {
    return backward(load_channels(grad + at + c, left), load_channels(raw + at + c, left), c);
  }
  CWK_INLINE auto channel(int64_t c, int64_t left) const {
    return [=, from = grad + c, value = raw + c, own = backward.channel(c)](int64_t at)
               CWK_INLINE_LAMBDA {
                 return own(load_channels(from + at, left), load_channels(value + at, left));
               };
  }
  CWK_INLINE void prefetch(int64_t at) const {
    CWK_ISA::prefetch(grad + at);
    CWK_ISA::prefetch(raw + at);
  }
};

}  // namespace cwkernels::CWK_ISA
