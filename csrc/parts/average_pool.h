#pragma once
#include "load.h"

// Average pool 3 x 3 of stride 1 on dense channels-last images, a row at a time. Along a row the
// sums of three pixels above each other move on by one, so a value is read three times and not
// nine, and nothing is stored in between.
namespace cwkernels::CWK_ISA {

struct PoolShape {
  int64_t height, width, channels;
  bool count_include_pad;

  CWK_INLINE int64_t row() const { return width * channels; }

  // 1 / the pixels that a window at `at` of `size` covers along one axis.
  template <class T>
  CWK_INLINE T share(int64_t at, int64_t size) const {
    if (count_include_pad) return T(1) / T(3);
    return T(1) / static_cast<T>(1 + (at > 0) + (at + 1 < size));
  }
};

// Writes, or adds to, a row of pixels: out[x] = (column(x - 1) + column(x) + column(x + 1)) *
// share(x), where column(x, c, left) gives what lies above each other at x.
template <class T, class Column, class Share>
CWK_INLINE void sum_neighbours(const PoolShape& shape, const Column& column, const Share& share,
                               bool overwrite, T* out) {
  for (int64_t c = 0; c < shape.channels; c += kLanes<T>) {
    const int64_t left = shape.channels - c;
    Vector<T> before{}, here = column(0, c, left);
    for (int64_t x = 0; x < shape.width; ++x) {
      Vector<T> behind{};
      if (x + 1 < shape.width) behind = column(x + 1, c, left);
      T* to = out + x * shape.channels + c;
      Vector<T> sum = (before + here + behind) * share(x);
      if (!overwrite) sum += load_channels(to, left);
      store_channels(to, sum, left);
      before = here;
      here = behind;
    }
  }
}

// The share of each pixel of a row: the first, the last and those between.
template <class T>
struct RowShares {
  T edge, inner;
  int64_t last;

  CWK_INLINE RowShares(const PoolShape& shape, T factor)
      : edge(factor * shape.share<T>(0, shape.width)),
        inner(factor * shape.share<T>(1, 3)),
        last(shape.width - 1) {}

  CWK_INLINE T operator()(int64_t x) const { return x == 0 || x == last ? edge : inner; }
};

// Row y of the pool of `image`, written to `out` or added to it.
template <class T>
CWK_FLATTEN inline void pool_row(const PoolShape& shape, const T* image, int64_t y, bool overwrite,
                                 T* out) {
  const T* at = image + y * shape.row();
  const int64_t above = y > 0 ? -shape.row() : 0;
  const int64_t below = y + 1 < shape.height ? shape.row() : 0;
  const auto column = [&](int64_t x, int64_t c, int64_t left) {
    const T* pixel = at + x * shape.channels + c;
    Vector<T> sum = load_channels(pixel, left);
    if (above != 0) sum += load_channels(pixel + above, left);
    if (below != 0) sum += load_channels(pixel + below, left);
    return sum;
  };
  const RowShares<T> shares(shape, shape.share<T>(y, shape.height));
  sum_neighbours(shape, column, shares, overwrite, out);
}

// Row y of the gradient of the pool's input, from the gradient `image` of its output.
template <class T>
CWK_FLATTEN inline void pool_row_backward(const PoolShape& shape, const T* image, int64_t y,
                                          bool overwrite, T* out) {
  const T* at = image + y * shape.row();
  const int64_t above = y > 0 ? -shape.row() : 0;
  const int64_t below = y + 1 < shape.height ? shape.row() : 0;
  const T own = shape.share<T>(y, shape.height);
  const T share_above = above != 0 ? shape.share<T>(y - 1, shape.height) : T(0);
  const T share_below = below != 0 ? shape.share<T>(y + 1, shape.height) : T(0);
  const RowShares<T> shares(shape, T(1));
  const auto column = [&](int64_t x, int64_t c, int64_t left) {
    const T* pixel = at + x * shape.channels + c;
    Vector<T> sum = load_channels(pixel, left) * own;
    if (above != 0) sum += load_channels(pixel + above, left) * share_above;
    if (below != 0) sum += load_channels(pixel + below, left) * share_below;
    return sum * shares(x);
  };
  sum_neighbours(shape, column, [](int64_t) { return T(1); }, overwrite, out);
}

}  // namespace cwkernels::CWK_ISA
