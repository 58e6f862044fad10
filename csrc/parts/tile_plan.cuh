#pragma once
#include "portable.cuh"

// How a convolution over a stack of images is cut into tiles, and where each of their pixels is.
namespace cwkernels {

// Divides by a number that the host knows, for products of number and divisor below 2^32: by one
// multiplication instead of the twenty instructions of a division, of which each pixel that a tile
// loads would take five.
class Divisor {
 public:
  Divisor() = default;
  Divisor(int by) : by_(by), inverse_(UINT32_MAX / static_cast<uint32_t>(by)) {}

  __host__ __device__ operator int() const { return by_; }
  // The inverse is too small by at most 1, so that (n + 1) times it is short of a whole quotient by
  // less than the last n has to spare, and n + 1 = k by stays below k.
  __host__ __device__ int quotient(int n) const {
    return static_cast<int>((uint64_t{static_cast<uint32_t>(n + 1)} * inverse_) >> 32);
  }

 private:
  int by_;
  uint32_t inverse_;
};

// Which source pixels and weights make an output: tap (i, j) of output (y, x) reads the source at
// (step y + i - top, step x + j - left) and the weight at (r + i r_step, s + j s_step).
struct Window {
  int rows, columns;
  int step, top, left;
  int r, r_step, s, s_step;

  __host__ __device__ int taps() const { return rows * columns; }
};

// How the outputs of an image stack are cut into tiles: `rows` x `columns` pixels of `images`
// images.
struct Tiles {
  int images;
  Divisor rows, columns;
  Divisor source_rows, source_columns;  // that a tile reads of each image
  int across, down;                     // tiles of an image
  int64_t count;
  int64_t all_images;
  int height, width;  // outputs of an image

  __host__ __device__ int pixels() const { return images * rows * columns; }
  __host__ __device__ int source_pixels() const { return images * source_rows * source_columns; }
};

// Where a tile, or an output of it, is.
struct TilePlace {
  int64_t image;
  int y, x;
};

// --- On the host ---------------------------------------------------------------------------------

inline Window forward_window(int size, int stride) {
  return {size, size, stride, size / 2, size / 2, 0, 1, 0, 1};
}

// One axis of the gradient of the inputs 2 i + parity (or of all, if the stride is 1): input y gets
// output (y + pad - r) / stride for each r that leaves no rest.
struct WindowAxis {
  int taps, top, first, step;
};
inline WindowAxis gradient_axis(int size, int stride, int parity) {
  const int pad = size / 2;
  int last = size - 1;
  while (last >= 0 && (parity + pad - last) % stride != 0) --last;
  if (last < 0) return {0, 0, 0, 0};
  return {last / stride + 1, (last - pad - parity) / stride, last, -stride};
}
inline Window gradient_window(int size, int stride, int row_parity, int column_parity) {
  const WindowAxis y = gradient_axis(size, stride, row_parity);
  const WindowAxis x = gradient_axis(size, stride, column_parity);
  return {y.taps, x.taps, 1, y.top, x.top, y.first, y.step, x.first, x.step};
}

// The size of each of equal parts of at most `most`.
inline int even_part(int64_t size, int64_t most) {
  const int64_t parts = (size + most - 1) / most;
  return static_cast<int>((size + parts - 1) / parts);
}

// The rows and columns of a tile: as square as the images allow, so that little of what it reads is
// halo, and narrower where it would read too much.
inline void choose_sides(const Window& window, int pixels, int source_pixels, Tiles* t) {
  const auto reach = [&](int outputs, int taps) {
    return (outputs - 1) * window.step + max(taps, 1);
  };
  for (int widest = 16; widest > 0; widest /= 2) {
    t->columns = even_part(t->width, widest);
    t->source_columns = reach(t->columns, window.columns);
    for (int most = max(1, pixels / t->columns); most > 0; --most) {
      t->rows = even_part(t->height, most);
      t->source_rows = reach(t->rows, window.rows);
      if (t->source_rows * t->source_columns <= source_pixels) return;
    }
  }
}

// Tiles of at most `pixels` outputs that read at most `source_pixels`, of several images where
// those are small.
inline Tiles make_tiles(const Window& window, int64_t images, int64_t height, int64_t width,
                        int pixels, int source_pixels) {
  Tiles t{};
  t.height = static_cast<int>(height);
  t.width = static_cast<int>(width);
  t.all_images = images;
  choose_sides(window, pixels, source_pixels, &t);
  const int fitting =
      min(pixels / (t.rows * t.columns), source_pixels / (t.source_rows * t.source_columns));
  t.images = static_cast<int>(min(static_cast<int64_t>(max(fitting, 1)), images));
  t.across = (t.width + t.columns - 1) / t.columns;
  t.down = (t.height + t.rows - 1) / t.rows;
  t.count = (images + t.images - 1) / t.images * t.down * t.across;
  return t;
}

// A convolution that makes each output (i, j) of its tiles the target's pixel (step i + y,
// step j + x).
struct ConvPart {
  Window window;
  Tiles tiles;
  int step, y, x;
};

// The convolutions of a pass: the forward pass and the gradient at stride 1 are one, the gradient
// of an input at stride 2 is four.
struct ConvParts {
  ConvPart parts[4];
  int count;

  __host__ __device__ int64_t tiles() const {
    int64_t sum = 0;
    for (int i = 0; i < count; ++i) sum += parts[i].tiles.count;
    return sum;
  }
  int source_pixels() const {
    int most = 0;
    for (int i = 0; i < count; ++i) most = max(most, parts[i].tiles.source_pixels());
    return most;
  }
  int taps() const {
    int most = 0;
    for (int i = 0; i < count; ++i) most = max(most, parts[i].window.taps());
    return most;
  }
  // The part of a tile; the number becomes that in its part.
  __device__ __forceinline__ const ConvPart& part_of(int64_t* tile) const {
    int i = 0;
    for (; *tile >= parts[i].tiles.count; ++i) *tile -= parts[i].tiles.count;
    return parts[i];
  }
};

// Of `height` x `width` outputs.
inline ConvParts forward_parts(int size, int stride, int64_t images, int64_t height, int64_t width,
                               int pixels, int source_pixels) {
  ConvParts all{};
  all.count = 1;
  const Window window = forward_window(size, stride);
  all.parts[0] = {window, make_tiles(window, images, height, width, pixels, source_pixels), 1, 0,
                  0};
  return all;
}
// Of `height` x `width` inputs.
inline ConvParts gradient_parts(int size, int stride, int64_t images, int64_t height, int64_t width,
                                int pixels, int source_pixels) {
  ConvParts all{};
  for (int y = 0; y < min(static_cast<int64_t>(stride), height); ++y) {
    for (int x = 0; x < min(static_cast<int64_t>(stride), width); ++x) {
      const Window window = gradient_window(size, stride, y, x);
      all.parts[all.count++] = {
          window,
          make_tiles(window, images, (height - y + stride - 1) / stride,
                     (width - x + stride - 1) / stride, pixels, source_pixels),
          stride, y, x};
    }
  }
  return all;
}

// --- Places --------------------------------------------------------------------------------------

// Numbers of tiles have 31 bits: a division of 64 takes a hundred instructions.
__device__ __forceinline__ TilePlace tile_place(const Tiles& t, int64_t number) {
  const auto own = static_cast<unsigned>(number), across = static_cast<unsigned>(t.across);
  const auto down = static_cast<unsigned>(t.down);
  const unsigned line = own / across, image = line / down;
  return {static_cast<int64_t>(image) * t.images, static_cast<int>(line - image * down) * t.rows,
          static_cast<int>(own - line * across) * t.columns};
}

// Where pixel `pixel` of stacked images of `rows` x `columns` is.
struct InStack {
  int image, y, x;
};
__device__ __forceinline__ InStack in_stack(const Divisor& rows, const Divisor& columns,
                                            int pixel) {
  const int line = columns.quotient(pixel), image = rows.quotient(line);
  return {image, line - image * rows, pixel - line * columns};
}

// Output `pixel` of a tile, or whether there is none.
__device__ __forceinline__ bool output_place(const Tiles& t, const TilePlace& tile, int pixel,
                                             TilePlace* place) {
  const InStack at = in_stack(t.rows, t.columns, pixel);
  *place = {tile.image + at.image, tile.y + at.y, tile.x + at.x};
  return at.image < t.images && place->image < t.all_images && place->y < t.height &&
         place->x < t.width;
}

// The number of the source pixel, in the tile, of tap (0, 0) of an output. There may be more rows
// of a product than outputs; they read the first.
__device__ __forceinline__ int source_number(const Tiles& t, const Window& window, int pixel) {
  if (pixel >= t.pixels()) return 0;
  const InStack at = in_stack(t.rows, t.columns, pixel);
  return (at.image * t.source_rows + at.y * window.step) * t.source_columns + at.x * window.step;
}

}  // namespace cwkernels
