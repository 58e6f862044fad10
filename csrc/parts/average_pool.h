#pragma once
#include "simd.h"

// Average pool 3 x 3 of stride 1 on dense channels-last images, a row at a time: three rows are
// added, then three pixels of that, so a value is read six times and not nine.
namespace cwkernels::CWK_ISA {

struct PoolShape {
  int64_t height, width, channels;
  bool count_include_pad;

  CWK_INLINE int64_t row() const { return width * channels; }

  // Elements of the scratch of one row: the row between two pixels of zeros.
  CWK_INLINE int64_t scratch() const { return (width + 2) * channels; }
};

// 1 / the pixels that a window at `at` of `size` covers along one axis.
template <class T>
CWK_INLINE T pool_share(const PoolShape& shape, int64_t at, int64_t size) {
  if (shape.count_include_pad) return T(1) / T(3);
  return T(1) / static_cast<T>(1 + (at > 0) + (at + 1 < size));
}

// out[x] (+)= sum of the scratch's pixels x - 1, x, x + 1, times a share of pixel x.
template <class T, class Share>
CWK_INLINE void add_neighbours(const PoolShape& shape, const T* scratch, const Share& share,
                               bool overwrite, T* out) {
  const int64_t channels = shape.channels;
  for (int64_t x = 0; x < shape.width; ++x) {
    const T factor = share(x);
    const T* left = scratch + x * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const T sum = (left[c] + left[channels + c] + left[2 * channels + c]) * factor;
      out[x * channels + c] = overwrite ? sum : out[x * channels + c] + sum;
    }
  }
}

// Row y of the pool of `image`, written to `out` or added to it.
template <class T>
inline void pool_row(const PoolShape& shape, const T* image, int64_t y, bool overwrite, T* scratch,
                     T* out) {
  const int64_t row = shape.row(), channels = shape.channels;
  const T* at = image + y * row;
  const bool above = y > 0, below = y + 1 < shape.height;
  T* sums = scratch + channels;
  for (int64_t c = 0; c < channels; ++c) scratch[c] = sums[row + c] = T(0);
  for (int64_t i = 0; i < row; ++i) sums[i] = at[i];
  if (above) {
    for (int64_t i = 0; i < row; ++i) sums[i] += at[i - row];
  }
  if (below) {
    for (int64_t i = 0; i < row; ++i) sums[i] += at[i + row];
  }
  const T rows = pool_share<T>(shape, y, shape.height);
  add_neighbours(
      shape, scratch, [&](int64_t x) { return rows * pool_share<T>(shape, x, shape.width); },
      overwrite, out);
}

// Row y of the gradient of the pool's input, from the gradient `image` of its output.
template <class T>
inline void pool_row_backward(const PoolShape& shape, const T* image, int64_t y, bool overwrite,
                              T* scratch, T* out) {
  const int64_t row = shape.row(), channels = shape.channels;
  T* sums = scratch + channels;
  for (int64_t c = 0; c < channels; ++c) scratch[c] = sums[row + c] = T(0);
  for (int64_t i = 0; i < row; ++i) sums[i] = T(0);
  for (int64_t near = max(y - 1, 0); near < min(y + 2, shape.height); ++near) {
    const T share = pool_share<T>(shape, near, shape.height);
    const T* at = image + near * row;
    for (int64_t i = 0; i < row; ++i) sums[i] += at[i] * share;
  }
  for (int64_t x = 0; x < shape.width; ++x) {
    const T share = pool_share<T>(shape, x, shape.width);
    for (int64_t c = 0; c < channels; ++c) sums[x * channels + c] *= share;
  }
  add_neighbours(shape, scratch, [](int64_t) { return T(1); }, overwrite, out);
}

}  // namespace cwkernels::CWK_ISA
