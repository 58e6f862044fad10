#pragma once
#include "../parts/cell_node.cuh"
#include "nb201_cell_general.cuh"

// A cell runs node after node, one launch each, all architectures side by side (grid.y).
//
// Forward in training, or where something is kept, 4 launches n = 0..3. Launch n sums node n from
// what enters it on its load: raw outputs normalised by statistics that the launch before it has
// measured, and stored nodes for skips and pools. It reads every one of these tensors once (a 3 x 3
// convolution's tile with a rim), writes the raw output of each convolution that leaves the node
// and the node itself only where something will read it (a pool, a skip, the backward pass), and
// measures what it writes. Launch 3 has nothing to convolve: it writes the output and measures it.
// Statistics are complete when the launch that reads them begins, `statistics` is written by that.
// A step of 16 channels, 32 x 32 pixels and 256 images has tensors of 16.8 MB: all convolutions are
// (1 + 3) + (1 + 1 + 2) + (2 + 1 + 1) + (3 + 1) = 16 of them, 268 MB; in bf16 half of that, as of
// all that follows.
//
// In evaluation, if nothing is kept, 3 launches: statistics are known, so launch n normalises what
// its convolutions give, adds what skips and pools give of node n, and accumulates it into the
// nodes that the edges enter, in the order of the edges. (1 + 3) + (1 + 2 x 2) + (1 + 2 x 1) = 12
// tensors, 201 MB.
//
// Blocks: at most two a processor for each architecture, 264 on an H100, each with its run of
// pixels, so that statistics are few partial results and do not depend on the other architectures.
//
// Where only the device knows the choice, the grid and all launches are the same for any; a block
// reads the 116 bytes of its architecture, out of L2, and one without work returns.
namespace cwkernels {

// Adds what a tile's results are to the moments of a warp, one a channel: sums over the warp's
// pixels of the tile first, then squares about their mean.
template <class Split>
__device__ __forceinline__ void cell_measure(typename Split::Sums& sums,
                                             const CellOutputs<Split>& outputs, float count,
                                             Moments<float>* moments) {
#pragma unroll
  for (int j = 0; j < 2 * Split::kN; ++j) {
    float sum = 0, squares = 0;
#pragma unroll
    for (int i = 0; i < 2 * Split::kM; ++i) {
      const float own = sums.values[i / 2][j / 2][i % 2 * 2 + j % 2];
      if (outputs.live >> i & 1) sum += own;
    }
    sum = CellOutputs<Split>::sum_over_rows(sum);
    const float mean = count > 0 ? sum / count : 0.0f;
#pragma unroll
    for (int i = 0; i < 2 * Split::kM; ++i) {
      const float apart = sums.values[i / 2][j / 2][i % 2 * 2 + j % 2] - mean;
      if (outputs.live >> i & 1) squares += apart * apart;
    }
    squares = CellOutputs<Split>::sum_over_rows(squares);
    if (lane() >= 4) continue;
    Moments<float>& to = moments[Split::output() + j / 2 * kMmaColumns + lane() * 2 + j % 2];
    to = to.merged({count, mean, squares});
  }
}

// Which convolutions of a node read it rectified, and which as it is.
template <class Stored>
__device__ __forceinline__ bool cell_reads(const CellOf<Stored>& cell, int target, bool rectified) {
  const CellChoice& edge = cell.edge(edge_between(cell.l.node, target));
  return convolves(edge) && normalised(edge) == rectified;
}
template <class Stored>
__device__ __forceinline__ bool cell_any_reads(const CellOf<Stored>& cell, bool rectified) {
  bool any = false;
  for (int target = cell.l.node + 1; target < kCellNodes; ++target) {
    any |= cell_reads(cell, target, rectified);
  }
  return any;
}

// Every convolution of a node, of a tile: results(e, output, sums) for each chunk of outputs. The
// tile is loaded once for all that rectify it, once more if a skip's projection reads it as it is;
// if it `stores` the node, then with the first of these loads.
template <class Precision, class Split, class Stored, class Results>
__device__ __forceinline__ void cell_fan_out(const CellTileLaunch<Stored>& p,
                                             const CellOf<Stored>& cell, const TilePlace& tile,
                                             const CellNodeFours<Stored>& value, bool stores,
                                             float* source, float* weights,
                                             const Results& results) {
  const CellRows<Split> rows(p);
  const int64_t base = cell_tile_base(p, tile);
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    const bool rectified = pass == 0;
    if (!cell_any_reads(cell, rectified) && (rectified || !stores)) continue;
    sync_block();
    Stored* store = stores ? cell.stored(p.l.node) : nullptr;
    cell_load_tile<Precision>(
        p, tile,
        [&](const CellBatch& batch, Four(&values)[CellBatch::kCount]) {
          value(base, batch, values);
#pragma unroll
          for (int b = 0; b < CellBatch::kCount; ++b) {
            const int y = batch.y[b] - tile.y, x = batch.x[b] - tile.x;
            const bool own = y >= 0 && y < p.tiles.rows && x >= 0 && x < p.tiles.columns;
            if (store && batch.live[b] && own) {
              store_lanes(store + base + batch.offsets[b], values[b]);
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              values[b][i] = rectified ? rectify(values[b][i]) : values[b][i];
            }
          }
        },
        source);
    stores = false;
    sync_block();
#pragma unroll 1
    for (int target = p.l.node + 1; target < kCellNodes; ++target) {
      if (!cell_reads(cell, target, rectified)) continue;
      const int e = edge_between(p.l.node, target);
      for (int output = 0; output < p.l.p.channels; output += Split::kOutputs) {
        typename Split::Sums sums;
        sums.clear();
        cell_convolve_tile<Precision, Split, false>(sums, p, cell, e, output, rows, source,
                                                    weights);
        results(e, output, sums);
      }
    }
  }
}

// Nodes 0, 1 and 2 in training, or where something is kept. A block goes through its tiles; 256
// threads. Of a batch of 256:
//   16 channels, 32 x 32: tiles of 8 x 16 pixels, 10 x 18 with their rim, 14.4 KB; the weights of
//     three convolutions stay, 35.0 KB; coefficients and moments, 6.5 KB. Two blocks a processor
//     (55.9 KB and at most 128 registers each, which sums of 256 pixels would not fit); 2048 tiles
//     are 7.8 for each of 264 blocks.
//   32 channels, 16 x 16: half an image, 10 x 18, 25.9 KB, and 16 channels of one convolution's
//     weights at a time, 23.2 KB; 512 tiles for 264 blocks, two a processor. One by registers with
//   64 channels, 8 x 8: two images, 10 x 10 each, 54.4 KB, and weights, 46.2 KB; 128 tiles, less
//     than one for each processor of an H100. With the rest 112.3 KB, and where a block has no more
//     than 99 KB, one image.
template <class Precision, class Split>
__global__ void __launch_bounds__(Split::kThreads, Split::resident(Precision::kProducts))
    cell_forward_tile(const __grid_constant__ CellTileLaunch<typename Precision::Stored> p) {
  using Stored = typename Precision::Stored;
  wait_for_previous();
  const CellLaunch<Stored>& l = p.l;
  const CellOf<Stored> cell(l, static_cast<int>(blockIdx.y));
  if (!cell_forward_works(cell.own, l.node)) return;
  const int channels = static_cast<int>(l.p.channels);
  Shared shared;
  int* last = shared.take<int>(1);
  CellTerm<Stored>* terms = shared.take<CellTerm<Stored>>(kCellFan);
  Norm<float>* norms = shared.take<Norm<float>>(static_cast<size_t>(kCellFan * channels));
  const int measured = kCellFan * Split::kWarpsM * channels;
  Moments<float>* moments = shared.take<Moments<float>>(static_cast<size_t>(measured));
  float* source = shared.take<float>(static_cast<size_t>(p.source_values));
  float* weights =
      shared.take<float>(static_cast<size_t>((p.resident ? kCellFan : 1) * p.weight_values));
  cell_make_norms(cell, l.node, norms);
  for (int i = static_cast<int>(threadIdx.x); i < measured; i += Split::kThreads) {
    moments[i] = Moments<float>::nothing();
  }
  cell_load_resident<Precision, Split, false>(p, cell, weights);
  sync_block();
  const CellNodeFours<Stored> value(cell, l.node, norms, terms);
  const bool stores = l.node > 0 && cell.own.nodes[l.node] != kNowhere;
  Moments<float>* mine = moments + Split::pixel() / (Split::kM * kMmaRows) * channels;
  for (int64_t number = blockIdx.x; number < p.tiles.count; number += gridDim.x) {
    const TilePlace tile = tile_place(p.tiles, number);
    const auto keep = [&](int e, int output, typename Split::Sums& sums) {
      const CellOutputs<Split> outputs(p, tile);
      Stored* raw = cell.raw(e) + outputs.base + output;
      cell_each_result<Split>(sums, outputs, [&](int n, int i, const float* pair) {
        store_pair(raw + outputs.offsets[i] + n, pair[0], pair[1]);
      });
      if (!l.p.training) return;
      cell_measure<Split>(sums, outputs, outputs.count(),
                          mine + leaving_place(e) * Split::kWarpsM * channels + output);
    };
    cell_fan_out<Precision, Split>(p, cell, tile, value, stores, source, weights, keep);
  }
  allow_next();
  if (!l.p.training) return;
  sync_block();
  leave_partial(l.moments[l.node], cell.slot, blockIdx.x, last, [&](int64_t i) {
    const Moments<float>* own = moments + i / channels * Split::kWarpsM * channels + i % channels;
    Moments<float> whole = own[0];
    for (int warp = 1; warp < Split::kWarpsM; ++warp) whole = whole.merged(own[warp * channels]);
    return whole;
  });
}

// What a tile of node l.node gives without weights, added to the nodes that it enters.
template <class Stored>
__device__ __forceinline__ void cell_add_plain(const CellTileLaunch<Stored>& p,
                                               const CellOf<Stored>& cell, const TilePlace& tile,
                                               const CellNodeFours<Stored>& value) {
  const int node = p.l.node;
  for (int i = static_cast<int>(threadIdx.x); i < p.tiles.pixels() * p.pieces;
       i += static_cast<int>(blockDim.x)) {
    TilePlace at;
    const int own_pixel = p.pieces.quotient(i);
    if (!output_place(p.tiles, tile, own_pixel, &at)) continue;
    const int64_t pixel = (at.image * p.tiles.height + at.y) * p.tiles.width + at.x;
    const int64_t offset = pixel * p.l.p.channels + (i - own_pixel * p.pieces) * 4;
    if (node == 0 && !fed(cell.own, 3)) store_lanes(cell.output() + offset, Four{});
    for (int target = node + 1; target < kCellNodes; ++target) {
      const int e = edge_between(node, target);
      if (convolves(cell.edge(e)) || !cell_adds(cell.own, e)) continue;
      const Stored* from = cell.node(node) + offset;
      Four own =
          is(cell.edge(e), CellCode::skip) ? load_lanes<4>(from) : value.pooled(from, at.y, at.x);
      Stored* to = cell.stored(target) + offset;
      if (!cell_begins(cell.own, e)) {
        const Four before = load_lanes<4>(to);
#pragma unroll
        for (int k = 0; k < 4; ++k) own[k] = before[k] + own[k];
      }
      store_lanes(to, own);
    }
  }
}

// Nodes 0, 1 and 2 in evaluation, with nothing kept.
template <class Precision, class Split>
__global__ void __launch_bounds__(Split::kThreads, 1)
    cell_evaluate_tile(const __grid_constant__ CellTileLaunch<typename Precision::Stored> p) {
  using Stored = typename Precision::Stored;
  wait_for_previous();
  const CellLaunch<Stored>& l = p.l;
  const CellOf<Stored> cell(l, static_cast<int>(blockIdx.y));
  if (!cell_evaluation_works(cell.own, l.node)) return;
  const int channels = static_cast<int>(l.p.channels);
  Shared shared;
  CellTerm<Stored>* terms = shared.take<CellTerm<Stored>>(kCellFan);
  Norm<float>* norms = shared.take<Norm<float>>(static_cast<size_t>(kCellFan * channels));
  float* source = shared.take<float>(static_cast<size_t>(p.source_values));
  float* weights =
      shared.take<float>(static_cast<size_t>((p.resident ? kCellFan : 1) * p.weight_values));
  for (int target = l.node + 1; target < kCellNodes; ++target) {
    const int e = edge_between(l.node, target);
    if (!normalised(cell.edge(e))) continue;
    for (int c = static_cast<int>(threadIdx.x); c < channels; c += Split::kThreads) {
      norms[leaving_place(e) * channels + c] = cell.channels(e).norm(c);
    }
  }
  cell_load_resident<Precision, Split, false>(p, cell, weights);
  const CellNodeFours<Stored> value(cell, l.node, nullptr, terms);
  for (int64_t number = blockIdx.x; number < p.tiles.count; number += gridDim.x) {
    const TilePlace tile = tile_place(p.tiles, number);
    const auto add = [&](int e, int output, typename Split::Sums& sums) {
      const CellOutputs<Split> outputs(p, tile);
      const Norm<float>* norm = norms + leaving_place(e) * channels + output;
      const bool begins = cell_begins(cell.own, e), normed = normalised(cell.edge(e));
      Stored* to = cell.stored(target_of(e)) + outputs.base + output;
      cell_each_result<Split>(sums, outputs, [&](int n, int i, const float* pair) {
        Two own{{pair[0], pair[1]}};
        if (normed) own = {{norm[n](own[0]), norm[n + 1](own[1])}};
        if (!begins) {
          const Two before = load_lanes<2>(to + outputs.offsets[i] + n);
          own = {{before[0] + own[0], before[1] + own[1]}};
        }
        store_pair(to + outputs.offsets[i] + n, own[0], own[1]);
      });
    };
    cell_fan_out<Precision, Split>(p, cell, tile, value, false, source, weights, add);
    cell_add_plain(p, cell, tile, value);
  }
  allow_next();
}

// Node 3 in training, or where something is kept: one thread four channels of a pixel.
template <class Stored>
__global__ void __launch_bounds__(kCellThreads, 1)
    cell_output_tile(const __grid_constant__ CellTileLaunch<Stored> p) {
  wait_for_previous();
  const CellLaunch<Stored>& l = p.l;
  const CellOf<Stored> cell(l, static_cast<int>(blockIdx.y));
  const int64_t channels = l.p.channels;
  Shared shared;
  int* last = shared.take<int>(1);
  Moments<float>* merging = shared.take<Moments<float>>(kCellThreads);
  Norm<float>* norms = shared.take<Norm<float>>(static_cast<size_t>(kCellFan * channels));
  CellTerm<Stored>* terms = shared.take<CellTerm<Stored>>(kCellFan);
  cell_make_norms(cell, 3, norms);
  const CellNodeFours<Stored> value(cell, 3, norms, terms);
  sync_block();
  const CellThreads on(l, blockIdx.x, channels / 4);
  Moments<float>* mine = l.moments[3].of_block(cell.slot, blockIdx.x);
  for (int64_t k = on.column; k - on.column < channels / 4; k += on.columns) {
    const bool live = k < channels / 4;
    Moments<float> own[4];
    for (auto& lane : own) lane = Moments<float>::nothing();
    for (int first = on.begin + on.row; live && first < on.end;
         first += CellBatch::kCount * on.rows) {
      CellBatch batch;
      batch.channel = static_cast<int>(k) * 4;
#pragma unroll
      for (int b = 0; b < CellBatch::kCount; ++b) {
        const CellPixel at = cell.pixel(first + b * on.rows);
        batch.offsets[b] = b * on.rows * static_cast<int>(channels);
        batch.y[b] = at.y, batch.x[b] = at.x;
        batch.live[b] = first + b * on.rows < on.end;
      }
      const int64_t base = first * channels + k * 4;
      Four values[CellBatch::kCount] = {};
      value(base, batch, values);
#pragma unroll
      for (int b = 0; b < CellBatch::kCount; ++b) {
        if (!batch.live[b]) continue;
        store_lanes(cell.output() + base + batch.offsets[b], values[b]);
        const float count = own[0].count + 1, share = 1 / count;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float apart = values[b][j] - own[j].mean;
          own[j].count = count;
          own[j].mean += apart * share;
          own[j].squares += apart * (values[b][j] - own[j].mean);
        }
      }
    }
    for (int j = 0; l.p.training && j < 4; ++j) {
      cell_leave_rows(l.moments[3], cell.slot, on, own[j], merging, k * 4 + j, live);
    }
  }
  allow_next();
  if (!l.p.training) return;
  float* whole = static_cast<float*>(l.p.output_statistics) + cell.a * 2 * channels;
  leave_partial(
      l.moments[3], cell.slot, blockIdx.x, last, [&](int64_t i) { return mine[i]; },
      [&](int64_t c, const Moments<float>& sum) {
        whole[c] = sum.mean;
        whole[channels + c] = sum.variance();
      });
}

static_assert(10 * 18 * cell_pixel_stride(16) * sizeof(float) == 14400);
static_assert(kCellFan * Cell16::weight_values(9) * sizeof(float) == 34992);
static_assert(10 * 18 * cell_pixel_stride(32) * sizeof(float) == 25920);
static_assert(Cell32::weight_values(9) * sizeof(float) == 23184);
static_assert(2 * 10 * 10 * cell_pixel_stride(64) * sizeof(float) == 54400);
static_assert(Cell64::weight_values(9) * sizeof(float) == 46224);

// --- Host ----------------------------------------------------------------------------------------

// Scratch of the architectures of a launch.
template <class Stored, class T = Computed<Stored>>
void take_forward_scratch(CellLaunch<Stored>& l, int32_t places, CudaScratch& used) {
  CellScratch scratch(l.p);
  l.scratch = scratch.take<Stored>(places * l.size());
  for (int n = 0; l.p.training && n < kCellNodes; ++n) {
    const int64_t width = n == 3 ? 1 : kCellFan - n;
    l.moments[n] = scratch.partials<Moments<T>>(l.count, l.blocks, width * l.p.channels);
  }
  used = scratch.used();
}

template <class Stored, class T = Computed<Stored>>
int launch_cell_node(const CellLaunch<Stored>& l, void* stream) {
  const Grid grid{l.blocks, l.count};
  if (is_fused(l.p)) return launch(cell_evaluate_general<Stored>, grid, kCellThreads, 0, stream, l);
  const size_t shared = shared_bytes<int>(1) + shared_bytes<Moments<T>>(kCellThreads) +
                        shared_bytes<Norm<T>>(static_cast<size_t>(kCellFan * l.p.channels));
  return launch(cell_forward_general<Stored>, grid, kCellThreads, shared, stream, l);
}

template <class Split, class Stored>
size_t cell_forward_bytes(int64_t channels) {
  return shared_bytes<int>(1) + shared_bytes<CellTerm<Stored>>(kCellFan) +
         shared_bytes<Norm<float>>(static_cast<size_t>(kCellFan * channels)) +
         shared_bytes<Moments<float>>(static_cast<size_t>(kCellFan * Split::kWarpsM * channels));
}

template <class Precision, class Split, class Stored>
int launch_cell_tile(const CellTileLaunch<Stored>& p, void* stream) {
  const Grid grid{p.l.blocks, p.l.count};
  const int64_t channels = p.l.p.channels;
  if (is_fused(p.l.p)) {
    const size_t shared = shared_bytes<CellTerm<Stored>>(kCellFan) +
                          shared_bytes<Norm<float>>(static_cast<size_t>(kCellFan * channels));
    return launch(cell_evaluate_tile<Precision, Split>, grid, Split::kThreads,
                  shared + cell_tile_bytes(p), stream, p);
  }
  return launch(cell_forward_tile<Precision, Split>, grid, Split::kThreads,
                cell_forward_bytes<Split, Stored>(channels) + cell_tile_bytes(p), stream, p);
}

template <class Stored>
int launch_cell_node(const CellTileLaunch<Stored>& p, void* stream) {
  const int64_t channels = p.l.p.channels;
  if (p.l.node == 3) {
    const size_t shared = shared_bytes<int>(1) + shared_bytes<Moments<float>>(kCellThreads) +
                          shared_bytes<Norm<float>>(static_cast<size_t>(kCellFan * channels)) +
                          shared_bytes<CellTerm<Stored>>(kCellFan);
    return launch(cell_output_tile<Stored>, {p.l.blocks, p.l.count}, kCellThreads, shared, stream,
                  p);
  }
  return with_cell_split<Cell32>(channels, [&](auto split) {
    return with_cell_precision(p.l, [&](auto precision) {
      return launch_cell_tile<decltype(precision), decltype(split)>(p, stream);
    });
  });
}

// Every launch of a forward pass. `l` is a part of `launch`, or the whole.
template <class Launch, class Stored>
int launch_cell_forward(Launch& launch, CellLaunch<Stored>& l, void* stream) {
  for (l.node = 0; l.node < kCellNodes; ++l.node) {
    bool works = l.chosen && (l.node < 3 || !is_fused(l.p));
    for (int i = 0; !l.chosen && i < l.count; ++i) {
      const CellArchitecture& own = l.architectures[i];
      works |= is_fused(l.p) ? cell_evaluation_works(own, l.node) : cell_forward_works(own, l.node);
    }
    const int error = works ? launch_cell_node(launch, stream) : 0;
    if (error != 0) return error;
  }
  return 0;
}

// f(launch, its CellLaunch) for the architectures from `first` on, of images of Stored.
template <class Stored, class F>
int with_cell_forward_of(const NB201CellParams& p, int64_t first, CudaScratch& used, const F& f) {
  int32_t places = 0;
  if constexpr (kCellTiles<Stored>) {
    CellTileLaunch<Stored> tile{};
    tile.l = cell_launch<Stored>(p, first, places);
    const auto fits = [&](auto split) {
      using Split = decltype(split);
      const auto other = static_cast<int64_t>(cell_forward_bytes<Split, Stored>(p.channels));
      return make_cell_tiles<Split>(tile, other, false);
    };
    if (cell_is_aligned(p) && with_cell_split<Cell32>(p.channels, fits)) {
      take_forward_scratch(tile.l, places, used);
      return f(tile, tile.l);
    }
    places = 0;
  }
  auto l = cell_launch<Stored>(p, first, places);
  l.blocks = cell_blocks(p, kCellPixels);
  take_forward_scratch(l, places, used);
  return f(l, l);
}

template <class F>
int with_cell_forward(const NB201CellParams& p, int64_t first, CudaScratch& used, const F& f) {
  return with_cell_images(
      p, [&](auto stored) { return with_cell_forward_of<decltype(stored)>(p, first, used, f); });
}

}  // namespace cwkernels
