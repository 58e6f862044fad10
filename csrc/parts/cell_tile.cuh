#pragma once
#include <type_traits>

#include "cell.cuh"
#include "tile.cuh"

// What the kernels of a cell that use matrix units share: tiles of a node's pixels, of which all
// channels lie in shared memory, so that every convolution of the node reads them there.
namespace cwkernels {

template <class Stored>
struct CellTileLaunch {
  CellLaunch<Stored> l;
  Tiles tiles;            // read with the rim that a 3 x 3 convolution needs
  Window windows[2];      // of 1 x 1 and 3 x 3, in the direction of the pass
  Divisor pieces;         // of 16 bytes, that a pixel has
  int64_t source_values;  // of shared memory
  int64_t weight_values;
  bool resident;  // the weights of all convolutions of a node stay in shared memory
};
static_assert(sizeof(CellTileLaunch<float>) <= 4096);

// A pixel's channels lie 4 mod 8 values apart, which ldmatrix reads without conflicts.
__host__ __device__ constexpr int cell_pixel_stride(int64_t channels) {
  return static_cast<int>(channels) + 4;
}

// Where the first image of a tile begins. What a tile reads lies less than 2^31 values behind it,
// so that only this much of an offset needs 64 bits.
template <class Stored>
__device__ __forceinline__ int64_t cell_tile_base(const CellTileLaunch<Stored>& p,
                                                  const TilePlace& tile) {
  return tile.image * p.tiles.height * p.tiles.width * p.l.p.channels;
}

// What a thread loads at a time, so that it waits for memory once for all: four channels, the same
// of several pixels. Offsets are from the tile's base.
struct CellBatch {
  static constexpr int kCount = 2;
  int channel;
  int offsets[kCount], y[kCount], x[kCount];
  bool live[kCount];  // there is such a pixel, and it lies in an image

  template <class Stored>
  __device__ __forceinline__ void load(const Stored* from, Four (&values)[kCount]) const {
#pragma unroll
    for (int b = 0; b < kCount; ++b) {
      if (live[b]) values[b] = load_lanes<4>(from + offsets[b]);
    }
  }
};

// The source pixels of a tile, all channels; load(batch, values) loads a CellBatch. A thread keeps
// to its channels.
template <class Precision, class Stored, class Load>
__device__ __forceinline__ void cell_load_tile(const CellTileLaunch<Stored>& p,
                                               const TilePlace& tile, const Load& load, float* to) {
  const Tiles& t = p.tiles;
  const int stride = cell_pixel_stride(p.l.p.channels), count = t.source_pixels();
  const auto images = static_cast<int>(min(t.all_images - tile.image, int64_t{t.images}));
  const int rows = p.pieces.quotient(static_cast<int>(blockDim.x));
  const int own = p.pieces.quotient(static_cast<int>(threadIdx.x));
  CellBatch batch;
  batch.channel = (static_cast<int>(threadIdx.x) - own * p.pieces) * 4;
#pragma unroll 1
  for (int first = own; own < rows && first < count; first += CellBatch::kCount * rows) {
#pragma unroll
    for (int b = 0; b < CellBatch::kCount; ++b) {
      const int pixel = first + b * rows;
      const InStack at = in_stack(t.source_rows, t.source_columns, pixel);
      const int y = tile.y + at.y - 1, x = tile.x + at.x - 1;
      batch.y[b] = y, batch.x[b] = x;
      batch.live[b] = at.image < images && y >= 0 && y < t.height && x >= 0 && x < t.width;
      batch.offsets[b] = ((at.image * t.height + y) * t.width + x) * p.pieces * 4 + batch.channel;
    }
    Four values[CellBatch::kCount] = {};
    load(batch, values);
#pragma unroll
    for (int b = 0; b < CellBatch::kCount; ++b) {
      const int pixel = first + b * rows;
      if (pixel >= count) continue;
#pragma unroll
      for (int e = 0; e < 4; ++e) values[b][e] = Precision::hold(values[b][e]);
      store_lanes(to + pixel * stride + batch.channel, values[b]);
    }
  }
}

// Where this lane reads its rows of a tile.
template <class Split>
struct CellRows {
  int at[Split::kM];

  template <class Stored>
  __device__ __forceinline__ explicit CellRows(const CellTileLaunch<Stored>& p) {
#pragma unroll
    for (int i = 0; i < Split::kM; ++i) {
      const int pixel = Split::pixel() + i * kMmaRows + lane_row_of_a();
      at[i] = source_number(p.tiles, p.windows[1], pixel) * cell_pixel_stride(p.l.p.channels) +
              lane_depth_of_a();
    }
  }
};

// Adds the products of kDepth channels, from where `source` points on, over the taps of an edge.
template <class Precision, class Split, class Stored>
__device__ __forceinline__ void cell_multiply(typename Split::Sums& sums,
                                              const CellTileLaunch<Stored>& p, const Window& window,
                                              const CellRows<Split>& rows, const float* source,
                                              const float* weights) {
  const int stride = cell_pixel_stride(p.l.p.channels), rim = window.rows == 3 ? 0 : 1;
  const float* columns =
      weights + (Split::output() + lane_row_of_b()) * Split::kStride + lane_depth_of_b();
#pragma unroll 1
  for (int i = 0; i < window.rows; ++i) {
    for (int j = 0; j < window.columns; ++j) {
      const float* from = source + ((i + rim) * p.tiles.source_columns + j + rim) * stride;
#pragma unroll
      for (int depth = 0; depth < Split::kDepth; depth += kMmaDepth) {
        const float* a[Split::kM];
#pragma unroll
        for (int m = 0; m < Split::kM; ++m) a[m] = from + rows.at[m] + depth;
        multiply_rows<Precision>(sums, a, columns + depth, Split::kStride);
      }
      columns += kTapStride<Split::kOutputs, Split::kStride>;
    }
  }
}

// The weights of an edge for kOutputs outputs and kDepth channels.
template <class Precision, class Split, bool kBack, class Stored>
__device__ __forceinline__ void cell_load_weights(const CellTileLaunch<Stored>& p,
                                                  const CellOf<Stored>& cell, int e, int output,
                                                  int depth, float* weights) {
  const int size = kernel_size(cell.edge(e));
  const WeightChunk<Precision, Split::kOutputs, Split::kDepth, Split::kStride, kBack> chunk(
      cell.weight(e), static_cast<int>(p.l.p.channels), size, output, depth, weights);
  if (size == 3) {
    chunk.template load_whole<9>();
  } else {
    chunk.template load_whole<1>();
  }
}

// Adds the convolution of an edge to the sums of a tile, outputs from `output` on.
template <class Precision, class Split, bool kBack, class Stored>
__device__ __forceinline__ void cell_convolve_tile(typename Split::Sums& sums,
                                                   const CellTileLaunch<Stored>& p,
                                                   const CellOf<Stored>& cell, int e, int output,
                                                   const CellRows<Split>& rows, const float* source,
                                                   float* weights) {
  const Window& window = p.windows[kernel_size(cell.edge(e)) / 2];
  for (int depth = 0; depth < p.l.p.channels; depth += Split::kDepth) {
    if (!p.resident) {
      sync_block();
      cell_load_weights<Precision, Split, kBack>(p, cell, e, output, depth, weights);
      sync_block();
    }
    cell_multiply<Precision, Split>(
        sums, p, window, rows, source + depth,
        p.resident ? weights + leaving_place(e) * p.weight_values : weights);
  }
}

// Weights that stay, those of all convolutions that leave the node.
template <class Precision, class Split, bool kBack, class Stored>
__device__ __forceinline__ void cell_load_resident(const CellTileLaunch<Stored>& p,
                                                   const CellOf<Stored>& cell, float* weights) {
  if (!p.resident) return;
#pragma unroll 1
  for (int target = p.l.node + 1; target < kCellNodes; ++target) {
    const int e = edge_between(p.l.node, target);
    if (!convolves(cell.edge(e))) continue;
    cell_load_weights<Precision, Split, kBack>(p, cell, e, 0, 0,
                                               weights + leaving_place(e) * p.weight_values);
  }
}

// Which outputs of a tile there are, of those whose results this lane holds: bit 2 i + half for row
// 8 half of fragment i. And where they lie.
template <class Split>
struct CellOutputs {
  unsigned live = 0;
  int64_t base;                // of the tile, in an image stack
  int offsets[2 * Split::kM];  // of their first channel, from there on

  template <class Stored>
  __device__ __forceinline__ CellOutputs(const CellTileLaunch<Stored>& p, const TilePlace& tile)
      : base(cell_tile_base(p, tile)) {
#pragma unroll
    for (int i = 0; i < 2 * Split::kM; ++i) {
      TilePlace at;
      const bool is_live = output_place(p.tiles, tile, Split::pixel() + i * 8 + lane() / 4, &at);
      live |= static_cast<unsigned>(is_live) << i;
      const int image = static_cast<int>(at.image - tile.image);
      offsets[i] = ((image * p.tiles.height + at.y) * p.tiles.width + at.x) * p.pieces * 4;
    }
  }
  // How many pixels of the tile this warp has.
  __device__ __forceinline__ float count() const {
    float own = 0;
#pragma unroll
    for (int i = 0; i < 2 * Split::kM; ++i) own += static_cast<float>(live >> i & 1);
    return sum_over_rows(own);
  }
  // The sum over the eight lanes that hold other rows of the same columns; all get it.
  __device__ __forceinline__ static float sum_over_rows(float own) {
#pragma unroll
    for (int other = 4; other < kWarp; other *= 2) own += shuffle_xor(own, other);
    return own;
  }
};

// f(column, i, value) for each result of this lane that is live: of output `column` of the tile's
// chunk in row i of CellOutputs. `value` may be changed.
template <class Split, class F>
__device__ __forceinline__ void cell_each_result(typename Split::Sums& sums,
                                                 const CellOutputs<Split>& outputs, const F& f) {
#pragma unroll
  for (int i = 0; i < 2 * Split::kM; ++i) {
    if (!(outputs.live >> i & 1)) continue;
#pragma unroll
    for (int j = 0; j < Split::kN; ++j) {
      float* pair = sums.values[i / 2][j] + i % 2 * 2;
      f(Split::output() + j * kMmaColumns + lane() % 4 * 2, i, pair);
    }
  }
}

using Two = Lanes<float, 2>;

// --- Host ----------------------------------------------------------------------------------------

// Tiles of 128 pixels, so that 128 registers are enough for two blocks on a processor; but for 64
// channels, and the gradients of 32, which have one: 256 pixels read the weights half as often.
using Cell16 = TileSplit<8, 1, 1, 2, 16>;
using Cell32 = TileSplit<4, 2, 2, 2, 16>;
using Cell32Back = TileSplit<4, 2, 4, 2, 16>;
using Cell64 = TileSplit<4, 2, 2, 4, 16>;

// Whether matrix units multiply what lies in memory as Stored.
template <class Stored>
constexpr bool kCellTiles = std::is_same_v<Computed<Stored>, float>;

// Whether matrix units can run a cell, if its tiles fit: 16 bytes of a pixel are read at once.
inline bool cell_is_aligned(const NB201CellParams& p) {
  for (const auto& edge : p.weights) {
    for (const void* bank : edge) {
      if (!starts_wide(bank)) return false;
    }
  }
  return p.channels % 16 == 0 && starts_wide(p.input) && starts_wide(p.output) &&
         starts_wide(p.kept) && starts_wide(p.grad_output) && starts_wide(p.grad_input);
}

template <class Split>
constexpr bool cell_split_fits(int64_t channels) {
  return channels % Split::kOutputs == 0;
}

// f(Split) for the channels of a cell, of tiles with 32 outputs by Half.
template <class Half, class F>
auto with_cell_split(int64_t channels, const F& f) {
  if (cell_split_fits<Cell64>(channels)) return f(Cell64{});
  if (cell_split_fits<Half>(channels)) return f(Half{});
  return f(Cell16{});
}

// f(Precision) for a launch.
template <class Stored, class F>
auto with_cell_precision(const CellLaunch<Stored>& l, const F& f) {
  if constexpr (std::is_same_v<Stored, bf16>) {
    return f(Bf16{});
  } else {
    return l.p.winograd ? f(Tf32{}) : f(Tf32x3{});
  }
}

// Shared memory of a block: two blocks share a processor where it has plenty.
inline int64_t cell_shared_bytes() {
  const auto most = static_cast<int64_t>(current_device().shared_bytes);
  return most > 200 * 1024 ? most / 2 - 1024 : most;
}

// The tiles of a launch whose other shared memory is `other` bytes; returns whether they fit.
template <class Split, class Stored>
bool make_cell_tiles(CellTileLaunch<Stored>& p, int64_t other, bool back) {
  const NB201CellParams& c = p.l.p;
  p.pieces = static_cast<int>(c.channels) / 4;
  p.windows[0] = back ? gradient_window(1, 1, 0, 0) : forward_window(1, 1);
  p.windows[1] = back ? gradient_window(3, 1, 0, 0) : forward_window(3, 1);
  p.weight_values = Split::weight_values(9);
  p.resident = c.channels == Split::kOutputs && c.channels == Split::kDepth;
  const int64_t weights = (p.resident ? kCellFan : 1) * p.weight_values * int64_t{sizeof(float)};
  const int64_t room = (cell_shared_bytes() - other - weights - 256) /
                       (cell_pixel_stride(c.channels) * int64_t{sizeof(float)});
  if (room <= 0) return false;
  p.tiles = make_tiles(p.windows[1], c.images, c.height, c.width, Split::kPixels,
                       static_cast<int>(min(room, int64_t{2 * Split::kPixels})));
  p.source_values = int64_t{p.tiles.source_pixels()} * cell_pixel_stride(c.channels);
  p.l.blocks = sum_blocks(current_device().processors, 1, p.tiles.count);
  return p.tiles.source_pixels() <= room;
}

template <class Stored>
size_t cell_tile_bytes(const CellTileLaunch<Stored>& p) {
  return shared_bytes<float>(static_cast<size_t>(p.source_values)) +
         shared_bytes<float>(static_cast<size_t>((p.resident ? kCellFan : 1) * p.weight_values));
}

}  // namespace cwkernels
