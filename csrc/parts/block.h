#pragma once
#include "load.h"
#include "tasks.h"

// A block: a few consecutive images, what a task of a fused operation works on. Its values lie in
// scratch as patches between zeros: 34 x 34 x 16 floats are 74 KB and stay in L2 while all that is
// done with them is done.
namespace cwkernels::CWK_ISA {

struct BlockShape {
  int64_t images;  // at most
  int64_t height, width, channels;
  int64_t border;         // zeros above and left, and at least as many below and right
  int64_t rows, columns;  // of one image's patch

  CWK_INLINE int64_t pixels() const { return height * width; }
  CWK_INLINE int64_t image_size() const { return rows * columns * channels; }
  CWK_INLINE int64_t origin() const { return (border * columns + border) * channels; }

  // Kernels read the vector that begins at a pixel's last channels whole.
  CWK_INLINE int64_t size() const { return images * image_size() + 64; }
};

// Small images are taken together: 256 pixels keep the loops of all kernels long, and 8 x 8 x 64
// floats of four images are 64 KB. The size depends on the shape alone, so results do too.
constexpr int64_t kBlockPixelsWanted = 256;

CWK_INLINE int64_t images_per_block(int64_t images, int64_t height, int64_t width) {
  return max(min(kBlockPixelsWanted / (height * width), images), 1);
}

// `whole`: rows and columns beside the border are a multiple of it (4 for tiles of Winograd's).
CWK_INLINE BlockShape make_block(int64_t images, int64_t height, int64_t width, int64_t channels,
                                 int64_t border, int64_t whole = 1) {
  return {images,
          height,
          width,
          channels,
          border,
          round_up(height, whole) + 2 * border,
          round_up(width, whole) + 2 * border};
}

// Where a loader finds pixels: offsets in elements.
struct SourceStrides {
  int64_t image, row, column;
};

CWK_INLINE SourceStrides dense_strides(const BlockShape& shape) {
  const int64_t row = shape.width * shape.channels;
  return {shape.height * row, row, shape.channels};
}

// Zeros the whole patch. A worker does so once: only the pixels of images are written again.
template <class T>
CWK_INLINE void clear_patch(const BlockShape& shape, T* patch) {
  clear(patch, shape.size());
}

// How far ahead a stream of pixels asks for memory: 4 KB, a page, at whose end the hardware's own
// prefetcher stops.
template <class T>
constexpr int64_t kAhead = 4096 / static_cast<int64_t>(sizeof(T));

// Reads the pixels of `images` images through a loader; `at` is where the first one lies.
template <class T, class Load>
CWK_FLATTEN inline void fill_patch(const BlockShape& shape, int64_t images, const Load& load,
                                   int64_t at, const SourceStrides& strides, T* patch) {
  for (int64_t i = 0; i < images; ++i) {
    for (int64_t y = 0; y < shape.height; ++y) {
      const int64_t from = at + i * strides.image + y * strides.row;
      T* row = patch + i * shape.image_size() + shape.origin() + y * shape.columns * shape.channels;
      if constexpr (Load::kCopies) {
        if (strides.column == shape.channels) {
          for (int64_t j = 0; j < shape.width * shape.channels; ++j) row[j] = load.data[from + j];
          continue;
        }
      }
      for (int64_t c = 0; c < shape.channels; c += kLanes<T>) {
        const int64_t left = shape.channels - c;
        if (left >= kLanes<T>) {
          const auto own = load.channel(c, kLanes<T>);
          for (int64_t x = 0; x < shape.width; ++x) {
            load.prefetch(from + x * strides.column + c + kAhead<T>);
            store(row + x * shape.channels + c, own(from + x * strides.column));
          }
        } else {
          for (int64_t x = 0; x < shape.width; ++x) {
            store_part(row + x * shape.channels + c, load(from + x * strides.column, c, left),
                       left);
          }
        }
      }
    }
  }
}

// The images of an operation, cut into blocks.
struct Blocks {
  int64_t images, per_block, count;

  CWK_INLINE int64_t first(int64_t block) const { return block * per_block; }
  CWK_INLINE int64_t size(int64_t block) const { return min(per_block, images - first(block)); }
};

CWK_INLINE Blocks make_blocks(int64_t images, int64_t height, int64_t width) {
  const int64_t per_block = images_per_block(images, height, width);
  return {images, per_block, ceil_div(images, per_block)};
}

}  // namespace cwkernels::CWK_ISA
