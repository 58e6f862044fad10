#pragma once
#include "bottleneck.cuh"
#include "tile.cuh"

// Products of inverted_bottleneck's pointwise convolutions by matrix units, for images of float or
// bf16 and channels that are multiples of 16: a tile of pixels times a tile of outputs. What a
// kernel does to a pixel as it reads it is its source, and where results go is its epilogue.
namespace cwkernels {

// 128 pixels x 64 outputs by 8 warps of 32 x 32, 32 channels at a time. A chunk of the source is
// 128 rows of 36 floats, 18 KB, one of the weights 64 of 36 or, transposed, 32 of 72, 9 KB. 24 KB
// are read, twice the source of a gradient, for 256 mma of 1,024 products: 21 flop a byte, and 32
// where the source lies as bf16, 8 KB of it. A thread holds 32 sums and loads 16 values of the
// source (32 of a gradient), then 8 of the weights, at once.
using BottleneckSplit = TileSplit<4, 2, 2, 4, 32>;
constexpr int kProductPixels = BottleneckSplit::kPixels;
constexpr int kProductOutputs = BottleneckSplit::kOutputs;
constexpr int kProductThreads = BottleneckSplit::kThreads;
constexpr int kProductDepth = BottleneckSplit::kDepth;
constexpr int kProductStride = BottleneckSplit::kStride;
// Of transposed weights: 8 mod 32, so that four rows of eight columns lie in different banks.
constexpr int kAcrossStride = kProductOutputs + 8;
constexpr int kProductPieces = kProductDepth / 4;
// Blocks whose registers fit a processor: the halves of 3 x TF32's factors leave room for one.
template <class Precision>
constexpr int kProductResident = 2;
template <>
constexpr int kProductResident<Tf32x3> = 1;
constexpr int kSourceBatch = kProductPixels * kProductPieces / kProductThreads;
constexpr int kWeightBatch = kProductOutputs * kProductPieces / kProductThreads;
static_assert(kProductPixels == 128 && kProductOutputs == 64 && kProductThreads == 256);
static_assert(kSourceBatch == 4 && kWeightBatch == 2);
static_assert(kProductDepth * kAcrossStride == kProductOutputs * kProductStride);

// Columns of a tile whose sums a lane holds: two of each of its fragments.
constexpr int kLaneColumns = BottleneckSplit::kN * 2;
// Values of a column that a lane holds: two of each of its fragments.
constexpr int kLaneRows = BottleneckSplit::kM * 2;
// What a lane sums over the pixels of its block: two numbers a column, and their count.
constexpr int kLaneSums = 2 * kLaneColumns + 1;

// Shared memory of a block: a chunk of both factors, the sums over pixels that each lane keeps
// through its block's tiles, what four warps merge of a column, and the coefficients of the tile's
// outputs and of the source's channels.
struct ProductShared {
  float *source, *weights, *lane_sums, *source_table, *output_table;
  Moments<float>* merged;
  int* last;

  __device__ explicit ProductShared(int64_t depth) {
    Shared shared;
    source = shared.take<float>(kProductPixels * kProductStride);
    weights = shared.take<float>(kProductOutputs * kProductStride);
    lane_sums = shared.take<float>(kLaneSums * kProductThreads);
    merged = shared.take<Moments<float>>(BottleneckSplit::kWarpsM * kProductOutputs);
    output_table = shared.take<float>(3 * kProductOutputs);
    last = shared.take<int>(1);
    source_table = shared.take<float>(static_cast<size_t>(4 * depth));
  }
  static constexpr size_t bytes(int64_t depth) {
    return shared_bytes<float>(kProductPixels * kProductStride) +
           shared_bytes<float>(kProductOutputs * kProductStride) +
           shared_bytes<float>(kLaneSums * kProductThreads) +
           shared_bytes<Moments<float>>(BottleneckSplit::kWarpsM * kProductOutputs) +
           shared_bytes<float>(3 * kProductOutputs) + shared_bytes<int>(1) +
           shared_bytes<float>(static_cast<size_t>(4 * depth));
  }
};
// 72 KB at the most channels, 48 KB at none: room for two blocks on a processor but for 86, 89 and
// 120. The 128 registers of TF32 leave two, the 222 to 254 of 3 x TF32 one.
static_assert(ProductShared::bytes(1536) == 18432 + 9216 + 17408 + 3072 + 768 + 128 + 24576);
static_assert(ProductShared::bytes(1536) <= 99 * 1024);
static_assert(kProductResident<Tf32> * kProductThreads * 128 == 65536);

// --- Sources -------------------------------------------------------------------------------------

// fetch(pixel, channel) loads what four channels of a pixel are made of, and finish makes them.
// Channels, and offsets in a weight set of at most 1536 squared, are 32 bits: of 128 registers a
// thread there is none to spare for their upper halves.

// The images, or the pixels of them that a strided projection reads.
template <class Stored, bool kStrided>
struct ImageSource {
  const BottleneckChoice<Stored>& choice;
  using Raw = Four;

  __device__ Raw fetch(int64_t pixel, int channel) const {
    const int64_t from = kStrided ? choice.strided_pixel(pixel) : pixel;
    return load_lanes<4>(choice.input() + from * choice.p.input_channels + channel);
  }
  __device__ Four finish(const Raw& raw, int /*channel*/) const { return raw; }
};

// What a batch norm gives, rectified; `table` is shared: [3][table_width] coefficients.
template <class Stored>
struct ActivatedSource {
  const Stored* raw;
  int width;
  const float* table;
  int table_width;
  using Raw = Four;

  __device__ Raw fetch(int64_t pixel, int channel) const {
    return load_lanes<4>(raw + pixel * width + channel);
  }
  __device__ Four finish(const Raw& own, int channel) const {
    return activated_lanes(own, table, table_width, channel);
  }
};

// The gradient of a batch norm's raw input; `table` is shared: [4][table_width]. kReading: of the
// output pixel that read an input pixel by a strided projection, zeros where none did.
template <class Stored, bool kReading>
struct GradientSource {
  const BottleneckChoice<Stored>& choice;
  const Stored *gradient, *raw;
  int width;
  const float* table;
  int table_width;
  struct Raw {
    Four gradient, raw;
    bool live;
  };

  __device__ GradientSource(const BottleneckChoice<Stored>& of, int place,
                            const float* coefficients, int coefficients_width)
      : choice(of),
        gradient(of.output_gradient(place)),
        raw(of.raw(place)),
        width(static_cast<int>(of.channels(place))),
        table(coefficients),
        table_width(coefficients_width) {}

  __device__ Raw fetch(int64_t pixel, int channel) const {
    const int64_t from = kReading ? choice.reading_pixel(pixel) : pixel;
    if (from < 0) return {Four{}, Four{}, false};
    const int64_t at = from * width + channel;
    return {load_lanes<4>(gradient + at), load_lanes<4>(raw + at), true};
  }
  __device__ Four finish(const Raw& own, int channel) const {
    if (kReading && !own.live) return Four{};
    return raw_gradient_lanes(own.gradient, own.raw, table, table_width, channel);
  }
};

// --- Products ------------------------------------------------------------------------------------

// A weight bank's row, as rows of outputs, or as columns of them if it is read transposed.
struct ProductWeights {
  const float* data;
  int outputs, depth;
};

// Where a tile begins, and how many of its pixels exist.
struct ProductTile {
  int64_t pixel;
  int output, rows;

  __device__ ProductTile(int64_t first, int64_t pixels, int first_output)
      : pixel(first),
        output(first_output),
        rows(pixels - first < kProductPixels ? static_cast<int>(pixels - first) : kProductPixels) {}
};

// kBatch times four neighbours of the rows and columns from (0, 0) of a chunk on, kPieces in a row:
// fetched all at once by fetch(row, column), then finish(raw, column) to shared memory, rows of
// kStride floats. Of a gradient two at once where two blocks share a processor's registers: four of
// 9 words beside 32 sums spill. Two are 32 KB under way on a processor, 16 KB of bf16, and 3 TB/s
// of an H100 times 600 ns are 14 KB.
template <class Precision, class Raw, int kPieces, int kBatch, int kStride, class Fetch,
          class Finish>
__device__ __forceinline__ void load_chunk(const Fetch& fetch, const Finish& finish, float* to) {
  const int row = static_cast<int>(threadIdx.x) / kPieces;
  const int column = static_cast<int>(threadIdx.x) % kPieces * 4;
  constexpr int kStep = kProductThreads / kPieces;
  constexpr bool kTight = sizeof(Raw) > sizeof(Four) && kProductResident<Precision> > 1;
  constexpr int kAtOnce = kTight && kBatch > 2 ? 2 : kBatch;
#pragma unroll 1
  for (int first = 0; first < kBatch; first += kAtOnce) {
    Raw raw[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) raw[i] = fetch(row + (first + i) * kStep, column);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int own = row + (first + i) * kStep;
      Four four = finish(raw[i], own, column);
#pragma unroll
      for (int e = 0; e < 4; ++e) four[e] = Precision::hold(four[e]);
      store_lanes(to + own * kStride + column, four);
    }
  }
}

template <class Precision, class Source>
__device__ __forceinline__ void load_pixels(const Source& source, const ProductTile& tile,
                                            int channel, int channels, float* to) {
  using Raw = typename Source::Raw;
  const auto exists = [&](int row, int column) {
    return row < tile.rows && channel + column < channels;
  };
  load_chunk<Precision, Raw, kProductPieces, kSourceBatch, kProductStride>(
      [&](int row, int column) {
        return exists(row, column) ? source.fetch(tile.pixel + row, channel + column) : Raw{};
      },
      [&](const Raw& raw, int row, int column) {
        return exists(row, column) ? source.finish(raw, channel + column) : Four{};
      },
      to);
}

template <class Precision, bool kTransposed>
__device__ __forceinline__ void load_product_weights(const ProductWeights& weight, int output,
                                                     int channel, float* to) {
  constexpr int kPieces = (kTransposed ? kProductOutputs : kProductDepth) / 4;
  constexpr int kStride = kTransposed ? kAcrossStride : kProductStride;
  const int rows = kTransposed ? weight.depth : weight.outputs;
  const int columns = kTransposed ? weight.outputs : weight.depth;
  const int first_row = kTransposed ? channel : output;
  const int first_column = kTransposed ? output : channel;
  load_chunk<Precision, Four, kPieces, kWeightBatch, kStride>(
      [&](int row, int column) {
        if (first_row + row >= rows || first_column + column >= columns) return Four{};
        return load_lanes<4>(weight.data + (first_row + row) * columns + first_column + column);
      },
      [](const Four& four, int, int) { return four; }, to);
}

// Adds the products of a chunk whose weights lie across: rows of depth, columns of outputs.
template <class Precision>
__device__ __forceinline__ void multiply_across(BottleneckSplit::Sums& sums,
                                                const float* (&a)[BottleneckSplit::kM],
                                                const float* b) {
  typename Precision::template Operand<4> rows[BottleneckSplit::kM];
#pragma unroll
  for (int i = 0; i < BottleneckSplit::kM; ++i) {
    uint32_t raw[4];
    ldmatrix(raw, a[i]);
    rows[i] = Precision::operand(raw);
  }
  const float* near = b + lane() % 4 * kAcrossStride;
#pragma unroll
  for (int j = 0; j < BottleneckSplit::kN; ++j) {
    const float* from = near + j * kMmaColumns;
    const auto column = columns_of_b<Precision>(from, from + 4 * kAcrossStride);
#pragma unroll
    for (int i = 0; i < BottleneckSplit::kM; ++i) {
      Precision::multiply(sums.values[i][j], rows[i], column);
    }
  }
}

template <class Precision, bool kTransposed>
__device__ __forceinline__ void multiply_chunk(BottleneckSplit::Sums& sums,
                                               const ProductShared& shared) {
  const float* source = shared.source +
                        (BottleneckSplit::pixel() + lane_row_of_a()) * kProductStride +
                        lane_depth_of_a();
#pragma unroll
  for (int depth = 0; depth < kProductDepth; depth += kMmaDepth) {
    const float* a[BottleneckSplit::kM];
#pragma unroll
    for (int i = 0; i < BottleneckSplit::kM; ++i) {
      a[i] = source + i * kMmaRows * kProductStride + depth;
    }
    if (kTransposed) {
      multiply_across<Precision>(
          sums, a, shared.weights + depth * kAcrossStride + BottleneckSplit::output());
    } else {
      multiply_rows<Precision>(sums, a,
                               shared.weights +
                                   (BottleneckSplit::output() + lane_row_of_b()) * kProductStride +
                                   lane_depth_of_b() + depth,
                               kProductStride);
    }
  }
}

// The products of a tile of pixels and 64 outputs.
template <class Precision, bool kTransposed, class Source>
__device__ __forceinline__ void product_tile(BottleneckSplit::Sums& sums, const Source& source,
                                             const ProductWeights& weight, const ProductTile& tile,
                                             const ProductShared& shared) {
  sums.clear();
  for (int channel = 0; channel < weight.depth; channel += kProductDepth) {
    sync_block();
    load_pixels<Precision>(source, tile, channel, weight.depth, shared.source);
    load_product_weights<Precision, kTransposed>(weight, tile.output, channel, shared.weights);
    sync_block();
    multiply_chunk<Precision, kTransposed>(sums, shared);
  }
}

// f(pixel, output, i, j, e): sums.values[i][j][e] and [e + 1] are those of a pixel and of two
// outputs beside each other. Channels are even, so both exist or neither.
template <class F>
__device__ __forceinline__ void each_pair(const ProductTile& tile, int outputs, const F& f) {
  const int g = lane() / 4, t = lane() % 4;
#pragma unroll
  for (int i = 0; i < BottleneckSplit::kM; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = BottleneckSplit::pixel() + i * kMmaRows + half * 8 + g;
      if (row >= tile.rows) continue;
#pragma unroll
      for (int j = 0; j < BottleneckSplit::kN; ++j) {
        const int column = tile.output + BottleneckSplit::output() + j * kMmaColumns + 2 * t;
        if (column < outputs) f(tile.pixel + row, column, i, j, half * 2);
      }
    }
  }
}

// --- Sums over pixels ----------------------------------------------------------------------------

// What a lane sums over its block's tiles lies in shared memory, which leaves its registers to the
// products: sum i of thread t at i * 256 + t, so that no two meet in a bank.
struct LaneSums {
  float* own;

  __device__ explicit LaneSums(const ProductShared& shared) : own(shared.lane_sums + threadIdx.x) {
#pragma unroll
    for (int i = 0; i < kLaneSums; ++i) (*this)[i] = 0;
  }
  __device__ __forceinline__ float& operator[](int i) const { return own[i * kProductThreads]; }
};

// The statistics of the columns that a lane holds. The count is that of the rows, the same for each
// column.
struct ColumnMoments {
  LaneSums sums;  // means, squares about them, count

  __device__ explicit ColumnMoments(const ProductShared& shared) : sums(shared) {}

  __device__ __forceinline__ void add(const BottleneckSplit::Sums& values,
                                      const ProductTile& tile) const {
    float live[kLaneRows], rows = 0;
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      const int row = BottleneckSplit::pixel() + r / 2 * kMmaRows + r % 2 * 8 + lane() / 4;
      live[r] = row < tile.rows ? 1.0f : 0.0f;
      rows += live[r];
    }
    if (rows == 0) return;
    const float count = sums[2 * kLaneColumns], total = count + rows;
    const float inverse = 1 / rows, share = rows / total;
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      float sum = 0, squares = 0;
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        sum += live[r] * values.values[r / 2][c / 2][r % 2 * 2 + c % 2];
      }
      const float center = sum * inverse;
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        const float apart = values.values[r / 2][c / 2][r % 2 * 2 + c % 2] - center;
        squares += live[r] * apart * apart;
      }
      const float mean = sums[c], apart = center - mean;
      sums[c] = mean + apart * share;
      sums[kLaneColumns + c] += squares + apart * apart * count * share;
    }
    sums[2 * kLaneColumns] = total;
  }
  __device__ Moments<float> column(int c) const {
    return {sums[2 * kLaneColumns], sums[c], sums[kLaneColumns + c]};
  }
};

// The two sums of a batch norm's backward pass.
struct ColumnSums {
  LaneSums sums;

  __device__ explicit ColumnSums(const ProductShared& shared) : sums(shared) {}

  __device__ __forceinline__ void add(int c, float gradient, float apart) const {
    sums[c] += gradient;
    sums[kLaneColumns + c] += gradient * apart;
  }
  __device__ Sums<float> column(int c) const { return {sums[c], sums[kLaneColumns + c]}; }
};

__device__ __forceinline__ Moments<float> shuffled(const Moments<float>& own, int other) {
  return {shuffle_xor(own.count, other), shuffle_xor(own.mean, other),
          shuffle_xor(own.squares, other)};
}
__device__ __forceinline__ Sums<float> shuffled(const Sums<float>& own, int other) {
  return {shuffle_xor(own.first, other), shuffle_xor(own.second, other)};
}

// Merges what the lanes of a column have, then the warps, and leaves it as the block's partial
// result. By all threads, once.
template <class Value, class Stored, class Columns>
__device__ __forceinline__ void leave_columns(const BottleneckShare<Stored>& share,
                                              const Columns& own, const ProductShared& shared) {
  auto* merged = reinterpret_cast<Value*>(shared.merged);
  const int warp = static_cast<int>(threadIdx.x) / kWarp % BottleneckSplit::kWarpsM;
#pragma unroll
  for (int c = 0; c < kLaneColumns; ++c) {
    Value value = own.column(c);
#pragma unroll
    for (int other = 4; other < kWarp; other *= 2) value = value.merged(shuffled(value, other));
    const int column = BottleneckSplit::output() + c / 2 * kMmaColumns + lane() % 4 * 2 + c % 2;
    if (lane() < 4) merged[warp * kProductOutputs + column] = value;
  }
  sync_block();
  share.template leave<Value>(shared.last, [&](int64_t column) {
    Value value = merged[column];
    for (int w = 1; w < BottleneckSplit::kWarpsM; ++w) {
      value = value.merged(merged[w * kProductOutputs + column]);
    }
    return value;
  });
}

}  // namespace cwkernels
