#pragma once
#include "../ops/gather_conv.h"
#include "simd.h"

// A convolution pass as sums over shifted pixels, whatever its direction, stride or size:
//   target[pixel] = sum over taps t of source[pixel * source_step + shift_t] * weight[t]
// Forward is one such plane. The gradient of the input at stride s is s x s of them, one for each
// parity of the input pixel, each with the taps that reach that parity.
namespace cwkernels::CWK_ISA {

constexpr int kMaxTaps = 49;  // 7 x 7

// The taps of a plane are a rectangle of shifts, in source pixels, in ascending order: a row of
// them is one run of channels in memory.
struct Plane {
  int64_t rows, columns;  // target pixels
  int64_t target_row, target_column, target_step;
  int64_t source_step;
  int64_t first_row, first_column;  // the least shift
  int64_t tap_rows, tap_columns;    // 0 x 0: the target is zero
  int64_t weight_index[kMaxTaps];   // ky * R + kx of each tap

  CWK_INLINE int64_t taps() const { return tap_rows * tap_columns; }
};

CWK_INLINE Plane forward_plane(const GatherConvParams& p) {
  Plane plane{};
  plane.rows = p.output_height;
  plane.columns = p.output_width;
  plane.target_step = 1;
  plane.source_step = p.stride;
  plane.first_row = plane.first_column = -(p.kernel_size / 2);
  plane.tap_rows = plane.tap_columns = p.kernel_size;
  for (int64_t t = 0; t < plane.taps(); ++t) plane.weight_index[t] = t;
  return plane;
}

// Along one axis: input pixel s * i + parity takes output pixel i + (parity + pad - k) / s through
// tap k, for the k that leave no remainder. Descending k is ascending shift.
struct BackwardAxis {
  int64_t first_shift, count;
  int64_t taps[7];
};

CWK_INLINE BackwardAxis backward_axis(const GatherConvParams& p, int64_t parity) {
  BackwardAxis axis{};
  for (int64_t k = p.kernel_size - 1; k >= 0; --k) {
    const int64_t shift = parity + p.kernel_size / 2 - k;
    if (shift % p.stride != 0) continue;
    if (axis.count == 0) axis.first_shift = shift / p.stride;
    axis.taps[axis.count++] = k;
  }
  return axis;
}

CWK_INLINE Plane backward_plane(const GatherConvParams& p, int64_t parity_row,
                                int64_t parity_column) {
  const BackwardAxis row = backward_axis(p, parity_row);
  const BackwardAxis column = backward_axis(p, parity_column);
  Plane plane{};
  plane.rows = ceil_div(p.input_height - parity_row, p.stride);
  plane.columns = ceil_div(p.input_width - parity_column, p.stride);
  plane.target_row = parity_row;
  plane.target_column = parity_column;
  plane.target_step = p.stride;
  plane.source_step = 1;
  plane.first_row = row.first_shift;
  plane.first_column = column.first_shift;
  if (row.count == 0 || column.count == 0) return plane;
  plane.tap_rows = row.count;
  plane.tap_columns = column.count;
  for (int64_t r = 0; r < row.count; ++r) {
    for (int64_t c = 0; c < column.count; ++c) {
      plane.weight_index[r * column.count + c] = row.taps[r] * p.kernel_size + column.taps[c];
    }
  }
  return plane;
}

// One side of a pass: where its pixels are and how many channels each has.
template <class T>
struct Side {
  T* data;
  PixelStrides strides;
  int64_t height, width, channels;
};

template <class T>
struct Plan {
  Side<T> source, target;
  int plane_count;
  Plane planes[4];
};

// A 1 x 1 convolution of stride 1 sees pixels, not images: with both sides dense, all pixels of an
// architecture are one row, which blocks better than 16 pixels of a 4 x 4 image.
CWK_INLINE GatherConvParams flatten_pixels(GatherConvParams p) {
  const auto dense = [](const PixelStrides& s, int64_t height, int64_t width) {
    return s.row == s.column * width && s.image == s.row * height;
  };
  if (p.kernel_size != 1 || p.stride != 1 || p.depthwise ||
      !dense(p.input_strides, p.input_height, p.input_width) ||
      !dense(p.output_strides, p.output_height, p.output_width)) {
    return p;
  }
  p.input_width = p.output_width = p.images * p.input_height * p.input_width;
  p.images = p.input_height = p.output_height = 1;
  return p;
}

template <class T>
CWK_INLINE Plan<T> make_plan(const GatherConvParams& p) {
  Plan<T> plan{};
  const Side<T> input{static_cast<T*>(p.input), p.input_strides, p.input_height, p.input_width,
                      p.input_channels};
  const Side<T> output{static_cast<T*>(p.output), p.output_strides, p.output_height, p.output_width,
                       p.output_channels};
  if (p.pass == ConvPass::backward_input) {
    plan.source = output;
    plan.target = input;
    for (int64_t row = 0; row < min(p.stride, p.input_height); ++row) {
      for (int64_t column = 0; column < min(p.stride, p.input_width); ++column) {
        plan.planes[plan.plane_count++] = backward_plane(p, row, column);
      }
    }
  } else {
    plan.source = input;
    plan.target = output;
    plan.planes[plan.plane_count++] = forward_plane(p);
  }
  return plan;
}

// A band: consecutive target pixels [begin, end) of a plane, of one image. Bands are what is handed
// to threads. Where a tap can leave the image, the source pixels of a band are copied between
// zeros first; rows are whole then.
struct Bands {
  bool direct;     // no tap leaves the image: read the source in place
  int64_t pixels;  // target pixels a band, at most
  int64_t count;
  int64_t patch_rows, patch_columns;  // the copy's size in pixels; 0 x 0 if direct
};

// The patch is at most 64 KB where one row of target pixels allows it: it stays in L2 beside the
// weights (and half of it in L1), and a 34 x 34 x 16 image (74 KB) is two bands.
constexpr int64_t kPatchBytes = 64 << 10;

// Read in place, a band's source values are 32 KB where that is at least `least` pixels: they stay
// in L1 (48 KB) while all panels of weights pass by.
constexpr int64_t kDirectBytes = 32 << 10;

// In place, a row of taps is one run only if the source's pixels are dense.
template <class T>
CWK_INLINE bool readable_in_place(const Plane& plane, const Side<T>& source) {
  return plane.taps() == 0 ||
         (plane.first_row >= 0 && plane.first_column >= 0 &&
          (plane.rows - 1) * plane.source_step + plane.first_row + plane.tap_rows <=
              source.height &&
          (plane.columns - 1) * plane.source_step + plane.first_column + plane.tap_columns <=
              source.width &&
          (plane.tap_columns == 1 || source.strides.column == source.channels));
}

// `patch_channels` is what a pixel of the patch holds; `least_direct` the least pixels of a band
// that is read in place, 0 if none may be.
template <class T>
CWK_INLINE Bands make_bands(const Plane& plane, const Side<T>& source, int64_t least_direct,
                            int64_t patch_channels) {
  Bands bands{};
  const int64_t pixels = plane.rows * plane.columns;
  bands.direct = plane.taps() == 0 || (least_direct > 0 && readable_in_place(plane, source));
  if (bands.direct) {
    const int64_t fitting = kDirectBytes / (patch_channels * static_cast<int64_t>(sizeof(T)));
    const int64_t whole = max(least_direct, 1);  // 0: a plane of zeros
    bands.pixels = min(max(pixels, 1), round_up(max(fitting, whole), whole));
  } else {
    const int64_t row_bytes = patch_channels * static_cast<int64_t>(sizeof(T));
    bands.patch_columns = (plane.columns - 1) * plane.source_step + plane.tap_columns;
    const int64_t fitting = kPatchBytes / (bands.patch_columns * row_bytes) - plane.tap_rows;
    const int64_t rows = min(max(fitting / plane.source_step + 1, 1), max(plane.rows, 1));
    bands.patch_rows = (rows - 1) * plane.source_step + plane.tap_rows;
    bands.pixels = rows * plane.columns;
  }
  bands.count = ceil_div(pixels, max(bands.pixels, 1));
  return bands;
}

// Where each target pixel of a band reads and writes: offsets in elements, so that blocks of
// pixels need no geometry.
struct PixelList {
  int64_t* source;
  int64_t* target;
  int64_t count;
  int64_t step;  // between the sources of neighbours, if it is one throughout; else 0
};

template <class T>
CWK_INLINE int64_t band_pixels(const Plane& plane, const Bands& bands, const Side<T>& source,
                               const Side<T>& target, int64_t patch_channels, int64_t band,
                               PixelList& list) {
  const int64_t begin = band * bands.pixels;
  list.count = min(bands.pixels, plane.rows * plane.columns - begin);
  const int64_t first_row = begin / plane.columns;
  const int64_t row_stride =
      bands.direct ? source.strides.row : bands.patch_columns * patch_channels;
  const int64_t column_stride = bands.direct ? source.strides.column : patch_channels;
  const int64_t across = plane.source_step * column_stride, down = plane.source_step * row_stride;
  const int64_t target_across = plane.target_step * target.strides.column;
  const int64_t target_down = plane.target_step * target.strides.row;
  int64_t column = begin % plane.columns;
  int64_t from = (bands.direct ? first_row * down : 0) + column * across;
  int64_t to = (plane.target_row + first_row * plane.target_step) * target.strides.row +
               (plane.target_column + column * plane.target_step) * target.strides.column;
  const bool one_row = column + list.count <= plane.columns;
  list.step = one_row || down == plane.columns * across ? across : 0;
  for (int64_t i = 0; i < list.count; ++i, from += across, to += target_across) {
    list.source[i] = from;
    list.target[i] = to;
    if (++column == plane.columns) {
      column = 0;
      from += down - plane.columns * across;
      to += target_down - plane.columns * target_across;
    }
  }
  return first_row;
}

// Offset of a row of taps from a pixel's own offset: the patch begins at the least shift.
template <class T>
CWK_INLINE int64_t tap_row_offset(const Plane& plane, const Bands& bands, const Side<T>& source,
                                  int64_t patch_channels, int64_t tap_row) {
  return bands.direct ? (plane.first_row + tap_row) * source.strides.row +
                            plane.first_column * source.strides.column
                      : tap_row * bands.patch_columns * patch_channels;
}

// Copies channels [channel, channel + count) of the band's source pixels into `patch`, each pixel
// `patch_channels` wide, zeros outside the image and past `count`.
template <class T>
CWK_INLINE void fill_patch(const Plane& plane, const Bands& bands, const Side<T>& source,
                           const T* image, int64_t first_target_row, int64_t channel, int64_t count,
                           int64_t patch_channels, T* patch) {
  const int64_t top = first_target_row * plane.source_step + plane.first_row;
  const int64_t left = plane.first_column;
  for (int64_t r = 0; r < bands.patch_rows; ++r) {
    T* row = patch + r * bands.patch_columns * patch_channels;
    const int64_t y = top + r;
    const bool inside = y >= 0 && y < source.height;
    const int64_t from = inside ? min(max(-left, 0), bands.patch_columns) : bands.patch_columns;
    const int64_t to = inside ? min(max(source.width - left, from), bands.patch_columns) : from;
    for (int64_t i = 0; i < from * patch_channels; ++i) row[i] = T(0);
    for (int64_t i = to * patch_channels; i < bands.patch_columns * patch_channels; ++i) {
      row[i] = T(0);
    }
    if (from == to) continue;
    const T* pixel =
        image + y * source.strides.row + (left + from) * source.strides.column + channel;
    T* copy = row + from * patch_channels;
    if (count == patch_channels && source.strides.column == count) {
      for (int64_t i = 0; i < (to - from) * count; ++i) copy[i] = pixel[i];
      continue;
    }
    for (int64_t x = from; x < to; ++x, pixel += source.strides.column, copy += patch_channels) {
      for (int64_t i = 0; i < count; ++i) copy[i] = pixel[i];
      for (int64_t i = count; i < patch_channels; ++i) copy[i] = T(0);
    }
  }
}

// Hands out pieces of one workspace, 64-byte aligned. Built on a null base it only measures.
class Arena {
 public:
  explicit Arena(void* base) : base_(reinterpret_cast<uintptr_t>(base)) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(base_ + static_cast<uintptr_t>(used_));
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return piece;
  }

  int64_t used() const { return used_; }

 private:
  uintptr_t base_;
  int64_t used_ = 0;
};

}  // namespace cwkernels::CWK_ISA
