#pragma once
#include "conv_dense.h"
#include "transpose.h"
#include "winograd_transform.h"

// 3x3 convolutions of stride 1 by F(4x4, 3x3), forward and the gradient of the data, on blocks: a
// few whole images that lie between zeros in cache. Nothing transformed lives longer than one tile
// block. For one tile of 16 outputs, C source and K target channels, in vectors of 16 floats:
//   inputs   144 operations, 84 loads and 36 stores for each vector of C
//   products 36 C FMAs for each vector of K (directly: 144 C)
//   outputs  120 operations, 60 loads and 16 stores for each vector of K
// so 840 operations for 2304 at C = K = 16, 2832 for 9216 at 32, 10,272 for 36,864 at 64: 2.7, 3.3
// and 3.6 times fewer.
namespace cwkernels::CWK_ISA {

CWK_INLINE int64_t winograd_tiles(int64_t height, int64_t width) {
  return ceil_div(height, kWinogradOutputs) * ceil_div(width, kWinogradOutputs);
}

// Whether a 3 x 3 convolution of stride 1 should go by Winograd: by the shape of an image alone.
template <class T>
CWK_INLINE bool winograd_pays(int64_t height, int64_t width, int64_t channels, int64_t outputs) {
  if (sizeof(T) != sizeof(float)) return false;
  if (channels % kLanes<T> != 0 || outputs % kLanes<T> != 0) return false;
  // A tile costs a third to two fifths of its 16 pixels directly: at most half may be cut off.
  const int64_t tiles = winograd_tiles(height, width);
  return tiles * kWinogradOutputs * kWinogradOutputs <= 2 * height * width;
}

// One block. With several sources (the gradient of data that several convolutions read) their
// results are summed; with several targets (convolutions that read the same data) each gets its
// own. Channels and outputs are those of one source and target, multiples of kLanes<T>.
struct WinogradShape {
  int64_t images_per_block, height, width;
  int64_t patch_rows, patch_columns;  // winograd_patch_side(height), (width) at least
  int64_t channels, outputs;
  int64_t sources, targets;

  CWK_INLINE int64_t tile_columns() const { return ceil_div(width, kWinogradOutputs); }
  CWK_INLINE int64_t tiles_per_image() const { return winograd_tiles(height, width); }
  CWK_INLINE int64_t patch_size() const {
    return images_per_block * patch_rows * patch_columns * channels;
  }
};

// A patch is zero outside the image: one pixel before it, and behind it up to the last tile's end.
CWK_INLINE int64_t winograd_patch_side(int64_t side) {
  return round_up(side, kWinogradOutputs) + 2;
}

// Where a tile lies: its image, and the first of its outputs. Tiles are walked in their order.
struct WinogradTile {
  int64_t image, row, column;

  CWK_INLINE WinogradTile(const WinogradShape& shape, int64_t tile) {
    const int64_t in_image = tile % shape.tiles_per_image();
    image = tile / shape.tiles_per_image();
    row = in_image / shape.tile_columns() * kWinogradOutputs;
    column = in_image % shape.tile_columns() * kWinogradOutputs;
  }

  // Not by division, which takes as long as a third of a tile's outputs.
  CWK_INLINE void advance(const WinogradShape& shape) {
    column += kWinogradOutputs;
    if (column < shape.width) return;
    column = 0;
    row += kWinogradOutputs;
    if (row < shape.height) return;
    row = 0;
    ++image;
  }

  // Of the first of its inputs, in a patch.
  CWK_INLINE int64_t pixel(const WinogradShape& shape) const {
    return (image * shape.patch_rows + row) * shape.patch_columns + column;
  }
};

// What frequencies are apart beyond their values: 16 tiles x 16 or 64 channels alone would be a
// power of two, and all 36 frequencies of a tile in the same set of the cache.
template <class T>
constexpr int64_t kFrequencyPad = 64 / static_cast<int64_t>(sizeof(T));

// Tiles a block. Twice the products' 8 (6 with 16 registers), for which each panel of weights is
// read twice: at 64 channels weights come from L2 at 16 bytes a cycle for 8 tiles, 8 for 16, while
// 16 tiles' inputs (147 KB), a panel of their products (74 KB) and the weights (590 KB) fit in it.
constexpr int64_t kTileBlock = 2 * kBlockPixels;

template <class T>
class WinogradConvolution {
 public:
  explicit WinogradConvolution(const WinogradShape& shape)
      : shape_(shape),
        channels_(shape.sources * shape.channels),
        vectors_(shape.targets * shape.outputs / kLanes<T>) {
    // An odd vector of outputs joins the panel before it where registers allow: 3 + 1 + 24.
    const bool three = kVectorRegisters == 32 && vectors_ % 2 == 1 && vectors_ > 1;
    panels_ = three ? vectors_ / 2 : ceil_div(vectors_, 2);
    value_stride_ = kTileBlock * channels_ + kFrequencyPad<T>;
  }

  // Elements of the transformed weights: [panel][frequency][source channel][panel's outputs].
  int64_t packed_size() const {
    return kFrequencies * (channels_ * vectors_ * kLanes<T> + panels_ * kFrequencyPad<T>);
  }

  // Elements of scratch for one `run`: the inputs [frequency][tile][source channel] and a panel of
  // the products.
  int64_t scratch_size() const {
    return kFrequencies * (value_stride_ + kTileBlock * kMostVectors * kLanes<T>);
  }

  // Jobs that share the transform of the weights, in any order.
  int64_t pack_jobs() const { return vectors_ * (channels_ / kLanes<T>); }

  // weights[source * targets + target] is [outputs][channels][3][3] going forward and, transposed
  // for the gradient of the data, [channels][outputs][3][3]: always the row of a bank as it lies.
  CWK_FLATTEN void pack(const T* const* weights, bool transposed, int64_t job, T* packed) const {
    const int64_t vector = job % vectors_, channel = job / vectors_ * kLanes<T>;
    const int64_t output = vector * kLanes<T>;
    const T* weight = weights[channel / shape_.channels * shape_.targets + output / shape_.outputs];
    const int64_t k = output % shape_.outputs, c = channel % shape_.channels;
    T square[kWeightTaps * kLanes<T>][kLanes<T>];
    if (transposed) {
      load_square(weight + (c * shape_.outputs + k) * kWeightTaps, shape_.outputs, square);
      turn_square(square);
    } else {
      load_square(weight + (k * shape_.channels + c) * kWeightTaps, shape_.channels, square);
    }
    const int64_t panel = min(vector / 2, panels_ - 1);
    const int64_t width = panel_vectors(panel) * kLanes<T>;
    T* to = panel_of(packed, panel) + channel * width + (vector - 2 * panel) * kLanes<T>;
    for (int64_t i = 0; i < kLanes<T>; ++i, to += width) {
      const auto taps = [&](int t) {
        return load(square[i * kWeightTaps + (transposed ? kWeightTaps - 1 - t : t)]);
      };
      transform_weights<T>(taps, to, weight_stride(width));
    }
  }

  // patches[source] is [images][patch_rows][patch_columns][channels], targets[target] is
  // [images][height][width][outputs]; what lies in the targets is added to if `accumulate`.
  void run(const T* packed, const T* const* patches, int64_t images, T* const* targets,
           bool accumulate, T* scratch) const {
    const int64_t tiles = images * shape_.tiles_per_image();
    for (int64_t first = 0; first < tiles; first += kTileBlock) {
      const int64_t count = min(kTileBlock, tiles - first);
      transform_block(patches, first, count, scratch);
      for (int64_t panel = 0; panel < panels_; ++panel) {
        const int64_t vectors = panel_vectors(panel);
        if (vectors == 1)
          run_panel<1, 2>(packed, panel, first, count, targets, accumulate, scratch);
        if (vectors == 2)
          run_panel<2, 1>(packed, panel, first, count, targets, accumulate, scratch);
        if constexpr (kMostVectors == 3) {
          if (vectors == 3) {
            run_panel<3, 1>(packed, panel, first, count, targets, accumulate, scratch);
          }
        }
      }
    }
  }

 private:
  static constexpr int kMostVectors = kVectorRegisters == 32 ? 3 : 2;
  static_assert(kBlockPixels * kMostVectors + kMostVectors + 1 <= kVectorRegisters);

  int64_t panel_vectors(int64_t panel) const {
    return panel + 1 < panels_ ? 2 : vectors_ - 2 * (panels_ - 1);
  }

  template <class U>
  U* panel_of(U* packed, int64_t panel) const {
    return packed + panel * kFrequencies * weight_stride(2 * kLanes<T>);
  }

  int64_t weight_stride(int64_t width) const { return channels_ * width + kFrequencyPad<T>; }

  // kLanes rows of kLanes x 9 weights, transposed: square[i] holds weight i of each row.
  static CWK_INLINE void load_square(const T* from, int64_t row_channels,
                                     T (&square)[kWeightTaps * kLanes<T>][kLanes<T>]) {
    for (int64_t first = 0; first < kWeightTaps * kLanes<T>; first += kLanes<T>) {
      Vector<T> rows[kLanes<T>];
      unroll<kLanes<T>>(
          [&](auto i) { rows[i] = load(from + i * row_channels * kWeightTaps + first); });
      transpose<T>(rows);
      unroll<kLanes<T>>([&](auto i) { store(square[first + i], rows[i]); });
    }
  }

  // [channel][tap][row] to [row][tap][channel].
  static CWK_INLINE void turn_square(T (&square)[kWeightTaps * kLanes<T>][kLanes<T>]) {
    for (int64_t t = 0; t < kWeightTaps; ++t) {
      Vector<T> rows[kLanes<T>];
      unroll<kLanes<T>>([&](auto i) { rows[i] = load(square[i * kWeightTaps + t]); });
      transpose<T>(rows);
      unroll<kLanes<T>>([&](auto i) { store(square[i * kWeightTaps + t], rows[i]); });
    }
  }

  // The inputs of a tile block; groups of products are whole, so the last tile may be there again.
  CWK_FLATTEN void transform_block(const T* const* patches, int64_t first, int64_t count,
                                   T* values) const {
    const int64_t row = shape_.patch_columns * shape_.channels;
    const int64_t whole =
        round_up(count, panel_vectors(panels_ - 1) == 1 ? kTileBlock : kBlockPixels);
    WinogradTile tile(shape_, first);
    for (int64_t t = 0; t < whole; ++t) {
      const int64_t at = tile.pixel(shape_) * shape_.channels;
      for (int64_t s = 0; s < shape_.sources; ++s) {
        const T* patch = patches[s] + at;
        T* to = values + t * channels_ + s * shape_.channels;
        for (int64_t c = 0; c < shape_.channels; c += kLanes<T>) {
          const auto input = [&](int i, int j) {
            return load(patch + i * row + j * shape_.channels + c);
          };
          transform_inputs<T>(input, to + c, value_stride_);
        }
      }
      if (t < count - 1) tile.advance(shape_);
    }
  }

  // A panel of V vectors, whose products are computed for G groups of tiles at once.
  template <int V, int G>
  void run_panel(const T* packed, int64_t panel, int64_t first, int64_t count, T* const* targets,
                 bool accumulate, T* scratch) const {
    T* products = scratch + kFrequencies * value_stride_;
    multiply<V, G>(scratch, count, panel_of(packed, panel), products);
    for (int64_t v = 0; v < V; ++v) {
      const int64_t output = (2 * panel + v) * kLanes<T>;
      T* target = targets[output / shape_.outputs] + output % shape_.outputs;
      const T* from = products + v * kLanes<T>;
      accumulate ? finish_vector<V, true>(from, first, count, target)
                 : finish_vector<V, false>(from, first, count, target);
    }
  }

  // products[tile][frequency][V vectors] = inputs[frequency][tile][C] * weights[frequency][C][V]:
  // a tile's products lie in one piece, which is read faster than 36 that lie apart.
  template <int V, int G>
  CWK_FLATTEN void multiply(const T* values, int64_t tiles, const T* weights, T* products) const {
    constexpr int64_t width = V * kLanes<T>, tile_size = kFrequencies * width;
    const TapRows rows{1, 1, channels_, {}};
    for (int f = 0; f < kFrequencies; ++f) {
      for (int64_t t = 0; t < tiles; t += G * kBlockPixels) {
        const T* tile[kBlockPixels];
        unroll<kBlockPixels>([&](auto i) { tile[i] = values + (t + i) * channels_; });
        Vector<T> acc[G][kBlockPixels][V] = {};
        dense_block<T, V, G>(tile, kBlockPixels * channels_, rows, weights, acc);
        T* to = products + t * tile_size;
        unroll<G>([&](auto g) {
          unroll<kBlockPixels>([&](auto i) {
            unroll<V>([&](auto v) {
              store(to + (g * kBlockPixels + i) * tile_size + v * kLanes<T>, acc[g][i][v]);
            });
          });
        });
      }
      values += value_stride_;
      weights += weight_stride(width);
      products += width;
    }
  }

  // One vector of outputs of a tile block; a tile is cut where the image ends.
  template <int V, bool Accumulate>
  CWK_FLATTEN void finish_vector(const T* products, int64_t first, int64_t count, T* target) const {
    constexpr int64_t width = V * kLanes<T>;
    WinogradTile tile(shape_, first);
    for (int64_t t = 0; t < count; ++t, products += kFrequencies * width) {
      T* to = target + ((tile.image * shape_.height + tile.row) * shape_.width + tile.column) *
                           shape_.outputs;
      const auto product = [&](int i, int j) {
        return load(products + (i * kWinogradInputs + j) * width);
      };
      const auto write = [&](int i, int j, Vector<T> value) {
        T* pixel = to + (i * shape_.width + j) * shape_.outputs;
        store(pixel, Accumulate ? load(pixel) + value : value);
      };
      const int64_t rows = shape_.height - tile.row, columns = shape_.width - tile.column;
      if (rows >= kWinogradOutputs && columns >= kWinogradOutputs) {
        transform_products<T>(product, write);
      } else {
        transform_products<T>(product, [&](int i, int j, Vector<T> value) {
          if (i < rows && j < columns) write(i, j, value);
        });
      }
      tile.advance(shape_);
    }
  }

  WinogradShape shape_;
  int64_t channels_, vectors_, panels_, value_stride_;
};

}  // namespace cwkernels::CWK_ISA
