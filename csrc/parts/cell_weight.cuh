#pragma once
#include <type_traits>

#include "cell_jobs.cuh"
#include "cell_tile.cuh"
#include "tile_weight.cuh"

// The gradients of a cell's weights by matrix units: blocks of the last backward launch.
namespace cwkernels {

// Of a launch by matrix units, what the gradients of weights need beside it. A convolution's are
// shared out into chunks of kOutputs x kInputs channels, and the pixels into parts, the same for
// every architecture.
template <class Stored>
struct CellBackLaunch {
  CellTileLaunch<Stored> t;
  Tiles tiles[2];  // of 1 x 1 and 3 x 3
  Window windows[2];
  int64_t parts;
  Partials<float> partials;  // a slot for each chunk of each job
};
static_assert(sizeof(CellBackLaunch<float>) <= 4096);

// Weights by channels: chunks of 32 x 32 where they divide, else 16 x 16.
template <bool kWide>
using CellWeights =
    std::conditional_t<kWide, WeightSplit<2, 4, 1, 1, 1, 3>, WeightSplit<1, 2, 4, 1, 1, 3>>;
template <bool kWide>
using CellWeightsPointwise =
    std::conditional_t<kWide, WeightSplit<2, 4, 1, 1, 1, 1>, WeightSplit<1, 2, 4, 1, 1, 1>>;
template <class Split>
constexpr bool kCellWide = Split::kOutputs % 32 == 0;

// What one block has of the gradient of a chunk of weights, of its part of the tiles: written to
// `to`, [kOutputs, kInputs, taps].
template <class Precision, class Split, class Stored>
__device__ __forceinline__ void cell_weight_part(const CellBackLaunch<Stored>& p,
                                                 const CellOf<Stored>& cell, int e, int chunk,
                                                 int64_t part, Shared& shared, float* to) {
  const int channels = static_cast<int>(p.t.l.p.channels), inner = channels / Split::kInputs;
  const int output = chunk / inner * Split::kOutputs, input = chunk % inner * Split::kInputs;
  const Tiles& tiles = p.tiles[Split::kSize / 2];
  const Window& window = p.windows[Split::kSize / 2];
  NormBackward<float>* through = shared.take<NormBackward<float>>(Split::kOutputs);
  int* table = shared.take<int>(Split::kPixels);
  float* gradients = shared.take<float>(static_cast<size_t>(Split::values(tiles.source_pixels())));
  float* source = gradients + Split::gradient_values();
  const bool normed = normalised(cell.edge(e));
  const int c = static_cast<int>(threadIdx.x);
  if (normed && c < Split::kOutputs) through[c] = cell.norm_backward(e, output + c);
  fill_source_table<Split>(tiles, window, table);
  const Stored* grad = cell.grad(target_of(e));
  const Stored* raw = normed ? cell.raw(e) : nullptr;
  const Stored* node = cell.node(source_of(e));
  const auto offset = [&](int64_t image, int y, int x, int channel) {
    return ((image * tiles.height + y) * tiles.width + x) * channels + channel;
  };
  typename Split::Sums sums;
#pragma unroll
  for (int tap = 0; tap < Split::kTaps; ++tap) sums.taps[tap].clear();
  for (int64_t number = part; number < tiles.count; number += p.parts) {
    const TilePlace tile = tile_place(tiles, number);
    sync_block();
    load_gradients<Precision, Split>(
        tiles, tile, output,
        [&](int64_t image, int y, int x, int channel) {
          Four own = load_lanes<4>(grad + offset(image, y, x, channel));
          if (!normed) return own;
          const Four value = load_lanes<4>(raw + offset(image, y, x, channel));
#pragma unroll
          for (int i = 0; i < 4; ++i) own[i] = through[channel - output + i](own[i], value[i]);
          return own;
        },
        gradients);
    load_source<Precision, Split::kInputs, Split::kInputStride, kWeightBatch>(
        tiles, window, tile, tiles.height, tiles.width, input,
        [&](int64_t image, int y, int x, int channel) {
          Four own = load_lanes<4>(node + offset(image, y, x, channel));
#pragma unroll
          for (int i = 0; i < 4; ++i) own[i] = normed ? rectify(own[i]) : own[i];
          return own;
        },
        source);
    sync_block();
    multiply_weights<Precision, Split>(sums, tiles, table, gradients, source);
  }
  merge_weights<Split>(sums, gradients, [&](int k, int c, int tap, float value) {
    to[(k * Split::kInputs + c) * Split::kTaps + tap] = value;
  });
}

// On an H100, 264 blocks for six convolutions: of 16 channels 44 parts of 9.2 KB each, 2.4 MB of
// partial results an architecture; of 32 channels 44 of 36.9 KB, 9.7 MB; of 64 channels 4 chunks
// with 11 parts of 36.9 KB, 9.7 MB, of which the last of a group reads at most 590 KB out of L2.
// Shared memory of 32 x 32 chunks: 128 gradients of 40 floats, 20.5 KB, and 180 source pixels (two
// images of 8 x 8: 200), 28.8 or 32.0 KB, less than the input's tiles ask for.
static_assert(16 * 16 * 9 * sizeof(float) == 9216 && 32 * 32 * 9 * sizeof(float) == 36864);
static_assert(44 * 6 == 2 * 132 && 4 * 11 * 6 == 2 * 132 && kGroup * 36864 == 589824);
static_assert(CellWeights<true>::values(200) * sizeof(float) == 20480 + 32000);

// Sums the groups' results of a chunk of weights into a row of a bank's gradient, for all
// architectures of the launch that have read it, in order.
template <class Split, class Stored>
__device__ __forceinline__ void cell_sum_weights(const CellBackLaunch<Stored>& p,
                                                 const CellJob& job, int chunk) {
  const CellLaunch<Stored>& l = p.t.l;
  const int channels = static_cast<int>(l.p.channels), inner = channels / Split::kInputs;
  const int chunks = inner * (channels / Split::kOutputs);
  const CellOf<Stored> first(l, job.first);
  const CellChoice& own = first.edge(job.edge);
  float* target = static_cast<float*>(l.p.grad_weights[job.edge][own.bank]) +
                  own.slot * first.weight_size(job.edge);
  constexpr int kRow = Split::kInputs * Split::kTaps;
  for (int i = static_cast<int>(threadIdx.x); i < Split::kOutputs * kRow; i += Split::kThreads) {
    const int64_t k = chunk / inner * Split::kOutputs + i / kRow;
    float* to = target + (k * channels + chunk % inner * Split::kInputs) * Split::kTaps + i % kRow;
    float total = own.again ? *to : 0.0f;
    for (int slot = job.first; slot < l.count; ++slot) {
      if (!(job.readers >> slot & 1)) continue;
      const int64_t place = int64_t{l.job_of(slot, job.edge)} * chunks + chunk;
      float sum = 0;
      for (int64_t g = 0; g < p.partials.groups(); ++g) {
        sum += load_shared_by_blocks(p.partials.of_group(place, g) + i);
      }
      total += sum;
    }
    *to = total;
  }
}

// The last launch's blocks for gradients of weights: one is a part of a chunk of a job. The last of
// each kGroup parts merges theirs, the last of all that a row of a bank gets sums the groups.
template <class Precision, class Split, class Stored>
__device__ __forceinline__ void cell_weight_tiles(const CellBackLaunch<Stored>& p,
                                                  const CellJob& job, int64_t block) {
  const CellLaunch<Stored>& l = p.t.l;
  const int side = static_cast<int>(l.p.channels) / Split::kInputs, chunks = side * side;
  const int64_t part = block % p.parts, slot = block / p.parts;
  const int chunk = static_cast<int>(slot % chunks);
  const CellOf<Stored> cell(l, job.architecture);
  Shared shared;
  int* last = shared.take<int>(1);
  cell_weight_part<Precision, Split>(p, cell, job.edge, chunk, part, shared,
                                     p.partials.of_block(slot, part));
  constexpr int kValues = Split::kOutputs * Split::kInputs * Split::kTaps;
  const int64_t group = part / kGroup, first = group * kGroup;
  const int64_t members = min(p.parts - first, int64_t{kGroup});
  unsigned* tickets = p.partials.tickets;
  if (!arrives_last(tickets + slot * p.partials.tickets_per_slot() + group, members, last)) return;
  for (int i = static_cast<int>(threadIdx.x); i < kValues; i += Split::kThreads) {
    float sum = 0;
#pragma unroll 1
    for (int64_t b = 0; b < members; ++b) {
      sum += load_shared_by_blocks(p.partials.of_block(slot, first + b) + i);
    }
    p.partials.of_group(slot, group)[i] = sum;
  }
  const int64_t first_slot = int64_t{l.job_of(job.first, job.edge)} * chunks + chunk;
  const int64_t groups = job.count * p.partials.groups();
  unsigned* whole = tickets + (first_slot + 1) * p.partials.tickets_per_slot() - 1;
  if (!arrives_last(whole, groups, last)) return;
  cell_sum_weights<Split>(p, job, chunk);
}

// --- Host ----------------------------------------------------------------------------------------

template <class Split>
size_t cell_weight_bytes(const Tiles& tiles) {
  return shared_bytes<int>(1) + shared_bytes<NormBackward<float>>(Split::kOutputs) +
         shared_bytes<int>(Split::kPixels) +
         shared_bytes<float>(static_cast<size_t>(Split::values(tiles.source_pixels())));
}

// How the gradients of weights are shared out: two blocks a processor for six convolutions. The
// partial results of a launch have at most kCellWorkspace bytes; returns how many architectures it
// may have then, none if one has too many.
constexpr int64_t kCellWorkspace = int64_t{32} << 20;
template <class Split, class Stored>
int64_t make_weight_tiles(CellBackLaunch<Stored>& p) {
  using Weights = CellWeights<kCellWide<Split>>;
  // 10 x 18 source pixels of 8 x 16 outputs, or 10 x 10 of each of two images' 8 x 8.
  constexpr int kSourceMost = 320;
  const NB201CellParams& c = p.t.l.p;
  for (int i = 0; i < 2; ++i) {
    p.windows[i] = forward_window(2 * i + 1, 1);
    p.tiles[i] =
        make_tiles(p.windows[i], c.images, c.height, c.width, Weights::kPixels, kSourceMost);
  }
  const int64_t side = c.channels / Weights::kInputs, chunks = side * side;
  constexpr int64_t kBytes =
      int64_t{Weights::kOutputs} * Weights::kInputs * Weights::kTaps * sizeof(float);
  const int64_t fitting = kCellWorkspace / (kCellEdges * chunks * kBytes) * 16 / 17;
  const int64_t resident = 2 * current_device().processors / (kCellEdges * chunks);
  p.parts = min(min(max(resident, int64_t{1}), p.tiles[1].count), fitting);
  p.partials = {nullptr, nullptr, p.parts, kBytes / int64_t{sizeof(float)}};
  return p.parts == 0 ? 0 : kCellWorkspace / (p.partials.scratch(kCellEdges * chunks).bytes);
}

}  // namespace cwkernels
