#pragma once
#include "../parts/cell_weight.cuh"
#include "nb201_cell.cuh"
#include "nb201_cell_general_backward.cuh"

// Backward, 4 launches at most. The first sums, for the batch norms that enter node 3, the gradient
// and the gradient times what they normalised. Those for nodes 2 and 1 turn the gradients of the
// nodes that their edges enter into the node's own: through batch norm on the load (the raw output
// is read beside the gradient), convolution and ReLU; then they add what skips and pools give and
// take the sums of the batch norms that enter the node. The last does the same for the input, and
// beside that, in blocks of its own, all gradients of weights: neither needs the other, and six
// edges' blocks fill the device with few partial results of each.
// All convolutions, 16 channels, 32 x 32 pixels, 256 images, tensors of 16.8 MB: 4 (gradient and
// three raw outputs), node 2: 4 (gradient, raw, node, result) + 2 raw outputs of what enters, node
// 1: 6 + 1, the input: 8, weights: 18 (gradient, raw and node of each). 43 of them, 721 MB.
namespace cwkernels {

// The first launch: one thread four channels of a pixel.
template <class Stored>
__global__ void __launch_bounds__(kCellThreads, 1)
    cell_sums_tile(const __grid_constant__ CellBackLaunch<Stored> p) {
  wait_for_previous();
  const CellLaunch<Stored>& l = p.t.l;
  const CellOf<Stored> cell(l, static_cast<int>(blockIdx.y));
  if (!cell_sums_enter(cell.own, 3)) return;
  const int64_t channels = l.p.channels;
  Shared shared;
  int* last = shared.take<int>(1);
  Sums<float>* merging = shared.take<Sums<float>>(kCellThreads);
  const CellThreads on(l, blockIdx.x, channels / 4);
  for (int64_t k = on.column; k - on.column < channels / 4; k += on.columns) {
    const bool live = k < channels / 4;
    Sums<float> own[kCellFan][4];
    float mean[kCellFan][4];
    const Stored* raw[kCellFan];
#pragma unroll
    for (int source = 0; source < kCellFan; ++source) {
      const int e = edge_between(source, 3);
      raw[source] = live && normalised(cell.edge(e)) ? cell.raw(e) + k * 4 : nullptr;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        own[source][j] = Sums<float>::nothing();
        mean[source][j] = raw[source] ? cell.channels(e).mean[k * 4 + j] : 0.0f;
      }
    }
    for (int i = on.begin + on.row; live && i < on.end; i += on.rows) {
      const Four grad = load_lanes<4>(cell.grad(3) + i * channels + k * 4);
#pragma unroll
      for (int source = 0; source < kCellFan; ++source) {
        if (!raw[source]) continue;
        const Four value = load_lanes<4>(raw[source] + i * channels);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          own[source][j] = own[source][j].merged({grad[j], grad[j] * (value[j] - mean[source][j])});
        }
      }
    }
#pragma unroll
    for (int source = 0; source < kCellFan; ++source) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        cell_leave_rows(l.sums[3], cell.slot, on, own[source][j], merging,
                        source * channels + k * 4 + j, live);
      }
    }
  }
  allow_next();
  cell_merge_sums(l, cell, last);
}

// The gradient of a node, of a tile.
template <class Precision, class Split>
class CellBackTile {
 public:
  using Stored = typename Precision::Stored;
  using Results = typename Split::Sums;

  __device__ __forceinline__ CellBackTile(const CellTileLaunch<Stored>& p, Shared& shared)
      : p_(p),
        through_(shared.take<NormBackward<float>>(static_cast<size_t>(kCellFan * p.l.p.channels))),
        source_(shared.take<float>(static_cast<size_t>(p.source_values))),
        weights_(
            shared.take<float>(static_cast<size_t>((p.resident ? kCellFan : 1) * p.weight_values))),
        rows_(p) {}

  // What all tiles of an architecture share.
  __device__ __forceinline__ void begin(const CellOf<Stored>& cell) const {
    sync_block();
    cell_make_backward(cell, p_.l.node, through_);
    cell_load_resident<Precision, Split, true>(p_, cell, weights_);
  }

  // Channels from `output` on: through convolutions and their ReLU, then what projections, skips
  // and pools add.
  __device__ __forceinline__ void operator()(const CellOf<Stored>& cell, const TilePlace& tile,
                                             int output, Results& results) const {
    results.clear();
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {
      const bool rectified = pass == 0;
#pragma unroll 1
      for (int target = p_.l.node + 1; target < kCellNodes; ++target) {
        if (cell_reads(cell, target, rectified)) convolve(cell, tile, target, output, results);
      }
      if (!rectified || !cell_any_reads(cell, true)) continue;
      const CellOutputs<Split> outputs(p_, tile);
      const Stored* node = cell.node(p_.l.node) + outputs.base + output;
      cell_each_result<Split>(results, outputs, [&](int n, int i, float* pair) {
        const Two value = load_lanes<2>(node + outputs.offsets[i] + n);
        pair[0] = value[0] <= 0 ? 0.0f : pair[0];
        pair[1] = value[1] <= 0 ? 0.0f : pair[1];
      });
    }
    const CellOutputs<Split> outputs(p_, tile);
#pragma unroll 1
    for (int target = p_.l.node + 1; target < kCellNodes; ++target) {
      const CellChoice& edge = cell.edge(edge_between(p_.l.node, target));
      if (is(edge, CellCode::none) || convolves(edge)) continue;
      add_plain(cell, tile, outputs, target, is(edge, CellCode::average_pool), output, results);
    }
  }

 private:
  // Adds the gradient that an edge's convolution gives, batch norm's backward pass on the load.
  __device__ __forceinline__ void convolve(const CellOf<Stored>& cell, const TilePlace& tile,
                                           int target, int output, Results& results) const {
    const int e = edge_between(p_.l.node, target);
    const bool normed = normalised(cell.edge(e));
    const int64_t base = cell_tile_base(p_, tile);
    const Stored* grad = cell.grad(target) + base;
    const Stored* raw = normed ? cell.raw(e) + base : nullptr;
    const NormBackward<float>* through = through_ + leaving_place(e) * p_.l.p.channels;
    sync_block();
    cell_load_tile<Precision>(
        p_, tile,
        [&](const CellBatch& batch, Four(&values)[CellBatch::kCount]) {
          batch.load(grad, values);
          if (!normed) return;
          Four raws[CellBatch::kCount];
          batch.load(raw, raws);
#pragma unroll
          for (int b = 0; b < CellBatch::kCount; ++b) {
            if (!batch.live[b]) continue;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              values[b][i] = through[batch.channel + i](values[b][i], raws[b][i]);
            }
          }
        },
        source_);
    sync_block();
    cell_convolve_tile<Precision, Split, true>(results, p_, cell, e, output, rows_, source_,
                                               weights_);
  }

  // Adds what a skip or a pool into `target` gives.
  __device__ __forceinline__ void add_plain(const CellOf<Stored>& cell, const TilePlace& tile,
                                            const CellOutputs<Split>& outputs, int target,
                                            bool pooled, int output, Results& results) const {
    const Stored* grad = cell.grad(target) + outputs.base + output;
    cell_each_result<Split>(results, outputs, [&](int n, int i, float* pair) {
      const Stored* from = grad + outputs.offsets[i] + n;
      if (!pooled) {
        const Two own = load_lanes<2>(from);
        pair[0] += own[0], pair[1] += own[1];
        return;
      }
      TilePlace at;
      output_place(p_.tiles, tile, Split::pixel() + i * 8 + lane() / 4, &at);
      for (int y = -1; y <= 1; ++y) {
        for (int x = -1; x <= 1; ++x) {
          if (!cell.inside(at.y + y, at.x + x)) continue;
          const Two own = load_lanes<2>(from + (y * p_.tiles.width + x) * p_.l.p.channels);
          const float share = 1.0f / static_cast<float>(cell.window(at.y + y, at.x + x));
          pair[0] += own[0] * share, pair[1] += own[1] * share;
        }
      }
    });
  }

  const CellTileLaunch<Stored>& p_;
  NormBackward<float>* through_;
  float* source_;
  float* weights_;
  CellRows<Split> rows_;
};

// Adds a tile's gradients to a warp's sums of the batch norm of edge e.
template <class Split, class Stored>
__device__ __forceinline__ void cell_sum_tile(const CellOf<Stored>& cell, int e, int output,
                                              const CellOutputs<Split>& outputs,
                                              const typename Split::Sums& results,
                                              Sums<float>* sums) {
  const Stored* raw = cell.raw(e) + outputs.base + output;
  const float* mean = cell.channels(e).mean + output;
#pragma unroll
  for (int j = 0; j < Split::kN; ++j) {
    const int n = Split::output() + j * kMmaColumns + lane() % 4 * 2;
    Sums<float> own[2] = {Sums<float>::nothing(), Sums<float>::nothing()};
#pragma unroll
    for (int i = 0; i < 2 * Split::kM; ++i) {
      if (!(outputs.live >> i & 1)) continue;
      const Two value = load_lanes<2>(raw + outputs.offsets[i] + n);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float grad = results.values[i / 2][j][i % 2 * 2 + e];
        own[e] = own[e].merged({grad, grad * (value[e] - mean[n + e])});
      }
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      own[e] = {CellOutputs<Split>::sum_over_rows(own[e].first),
                CellOutputs<Split>::sum_over_rows(own[e].second)};
      if (lane() < 4) sums[n + e] = sums[n + e].merged(own[e]);
    }
  }
}

// The launches of nodes 2 and 1.
template <class Precision, class Split>
__global__ void __launch_bounds__(Split::kThreads, Split::resident(Precision::kProducts))
    cell_backward_tile(const __grid_constant__ CellBackLaunch<typename Precision::Stored> p) {
  using Stored = typename Precision::Stored;
  wait_for_previous();
  const CellLaunch<Stored>& l = p.t.l;
  const CellOf<Stored> cell(l, static_cast<int>(blockIdx.y));
  if (!fed(cell.own, l.node)) return;
  const int channels = static_cast<int>(l.p.channels);
  Shared shared;
  int* last = shared.take<int>(1);
  const int summed = (kCellFan - 1) * Split::kWarpsM * channels;
  Sums<float>* sums = shared.take<Sums<float>>(static_cast<size_t>(summed));
  for (int i = static_cast<int>(threadIdx.x); i < summed; i += Split::kThreads) {
    sums[i] = Sums<float>::nothing();
  }
  const CellBackTile<Precision, Split> gradient(p.t, shared);
  gradient.begin(cell);
  Sums<float>* mine = sums + Split::pixel() / (Split::kM * kMmaRows) * channels;
  for (int64_t number = blockIdx.x; number < p.t.tiles.count; number += gridDim.x) {
    const TilePlace tile = tile_place(p.t.tiles, number);
    for (int output = 0; output < channels; output += Split::kOutputs) {
      typename Split::Sums results;
      gradient(cell, tile, output, results);
      const CellOutputs<Split> outputs(p.t, tile);
      Stored* to = cell.grad(l.node) + outputs.base + output;
      cell_each_result<Split>(results, outputs, [&](int n, int i, const float* pair) {
        store_pair(to + outputs.offsets[i] + n, pair[0], pair[1]);
      });
      for (int source = 0; l.p.training && source < l.node; ++source) {
        const int e = edge_between(source, l.node);
        if (!normalised(cell.edge(e))) continue;
        cell_sum_tile<Split>(cell, e, output, outputs, results,
                             mine + source * Split::kWarpsM * channels + output);
      }
    }
  }
  allow_next();
  if (!l.p.training) return;
  sync_block();
  leave_partial(l.sums[l.node], cell.slot, blockIdx.x, last, [&](int64_t i) {
    const Sums<float>* own = sums + i / channels * Split::kWarpsM * channels + i % channels;
    Sums<float> whole = own[0];
    for (int warp = 1; warp < Split::kWarpsM; ++warp) whole = whole.merged(own[warp * channels]);
    return whole;
  });
}

// The last launch's blocks for the input's gradient. Of images that all architectures share it is
// their sum in order, which the one thread that has an element adds up.
template <class Precision, class Split, class Stored>
__device__ __forceinline__ void cell_input_tiles(const CellTileLaunch<Stored>& p, int64_t block,
                                                 int slot, int end) {
  Shared shared;
  const CellBackTile<Precision, Split> gradient(p, shared);
  for (; slot < end; ++slot) {
    const CellOf<Stored> cell(p.l, slot);
    const bool add = p.l.p.shared && cell.a > 0;
    gradient.begin(cell);
    for (int64_t number = block; number < p.tiles.count; number += p.l.blocks) {
      const TilePlace tile = tile_place(p.tiles, number);
      for (int output = 0; output < p.l.p.channels; output += Split::kOutputs) {
        typename Split::Sums results;
        gradient(cell, tile, output, results);
        const CellOutputs<Split> outputs(p, tile);
        Stored* to = cell.grad(0) + outputs.base + output;
        cell_each_result<Split>(results, outputs, [&](int n, int i, const float* pair) {
          Two own{{pair[0], pair[1]}};
          if (add) {
            const Two before = load_lanes<2>(to + outputs.offsets[i] + n);
            own = {{before[0] + own[0], before[1] + own[1]}};
          }
          store_pair(to + outputs.offsets[i] + n, own[0], own[1]);
        });
      }
    }
  }
}

// The last launch: blocks for the input, then blocks for weights; those of all six edges where only
// the device knows which of them convolve, so that 264 for each architecture start, and on average
// over all cells 2.0 edges' blocks have work.
template <class Precision, class Split>
__global__ void __launch_bounds__(Split::kThreads, Split::resident(Precision::kProducts))
    cell_backward_last_tile(const __grid_constant__ CellBackLaunch<typename Precision::Stored> p) {
  using Stored = typename Precision::Stored;
  using Weights = CellWeights<kCellWide<Split>>;
  using Pointwise = CellWeightsPointwise<kCellWide<Split>>;
  static_assert(Weights::kThreads == Split::kThreads && Weights::kInputs == Pointwise::kInputs &&
                Weights::kOutputs == Weights::kInputs && Pointwise::kOutputs == Weights::kOutputs);
  wait_for_previous();
  const CellLaunch<Stored>& l = p.t.l;
  if (blockIdx.x == 0) cell_write_rows(l);
  const int64_t inputs = l.blocks * (l.p.shared ? 1 : l.count), block = blockIdx.x - inputs;
  if (block < 0) {
    const int slot = static_cast<int>(blockIdx.x / l.blocks);
    cell_input_tiles<Precision, Split>(p.t, blockIdx.x % l.blocks, slot,
                                       l.p.shared ? l.count : slot + 1);
    return;
  }
  const int side = static_cast<int>(l.p.channels) / Weights::kInputs;
  const CellJob job = cell_job(l, static_cast<int>(block / (p.parts * side * side)));
  if (job.count == 0) return;
  if (kernel_size(l.architecture(job.architecture).edges[job.edge]) == 3) {
    cell_weight_tiles<Precision, Weights>(p, job, block);
  } else {
    cell_weight_tiles<Precision, Pointwise>(p, job, block);
  }
}

// --- Host ----------------------------------------------------------------------------------------

template <class Stored, class T = Computed<Stored>>
void take_backward_scratch(CellLaunch<Stored>& l, CellScratch& scratch) {
  l.scratch = scratch.take<Stored>(l.count * 2 * l.size());
  for (int n = 1; l.p.training && n < kCellNodes; ++n) {
    l.sums[n] = scratch.partials<Sums<T>>(l.count, l.blocks, n * l.p.channels);
  }
}

// The launches of a node: 3, then 2 and 1, then 0.
template <class Stored, class T = Computed<Stored>>
int launch_cell_node_backward(const CellLaunch<Stored>& l, void* stream) {
  const Grid grid{l.blocks, l.count};
  const size_t sums = shared_bytes<int>(1) + shared_bytes<Sums<T>>(kCellThreads);
  const size_t through =
      shared_bytes<NormBackward<T>>(static_cast<size_t>(kCellFan * l.p.channels));
  if (l.node == 3) return launch(cell_sums_general<Stored>, grid, kCellThreads, sums, stream, l);
  if (l.node > 0) {
    return launch(cell_backward_general<Stored>, grid, kCellThreads, sums + through, stream, l);
  }
  const int64_t blocks =
      l.blocks * (l.p.shared ? 1 : l.count) + l.jobs_count * cell_weight_chunks(l.p.channels);
  return launch(cell_backward_last_general<Stored>, {blocks}, kCellThreads, through, stream, l);
}

template <class Split>
size_t cell_backward_bytes(int64_t channels) {
  return shared_bytes<int>(1) +
         shared_bytes<Sums<float>>(
             static_cast<size_t>((kCellFan - 1) * Split::kWarpsM * channels)) +
         shared_bytes<NormBackward<float>>(static_cast<size_t>(kCellFan * channels));
}

template <class Precision, class Split, class Stored>
int launch_cell_tile_backward(const CellBackLaunch<Stored>& p, void* stream) {
  using Weights = CellWeights<kCellWide<Split>>;
  using Pointwise = CellWeightsPointwise<kCellWide<Split>>;
  const CellLaunch<Stored>& l = p.t.l;
  const size_t shared = cell_backward_bytes<Split>(l.p.channels) + cell_tile_bytes(p.t);
  if (l.node > 0) {
    return launch(cell_backward_tile<Precision, Split>, {l.blocks, l.count}, Split::kThreads,
                  shared, stream, p);
  }
  const int64_t side = l.p.channels / Weights::kInputs;
  const int64_t blocks =
      l.blocks * (l.p.shared ? 1 : l.count) + l.jobs_count * side * side * p.parts;
  const size_t weights =
      max(cell_weight_bytes<Weights>(p.tiles[1]), cell_weight_bytes<Pointwise>(p.tiles[0]));
  return launch(cell_backward_last_tile<Precision, Split>, {blocks}, Split::kThreads,
                max(shared, weights), stream, p);
}

template <class Stored>
int launch_cell_node_backward(const CellBackLaunch<Stored>& p, void* stream) {
  const CellLaunch<Stored>& l = p.t.l;
  if (l.node == 3) {
    const size_t sums = shared_bytes<int>(1) + shared_bytes<Sums<float>>(kCellThreads);
    return launch(cell_sums_tile<Stored>, {l.blocks, l.count}, kCellThreads, sums, stream, p);
  }
  return with_cell_split<Cell32Back>(l.p.channels, [&](auto split) {
    return with_cell_precision(l, [&](auto precision) {
      return launch_cell_tile_backward<decltype(precision), decltype(split)>(p, stream);
    });
  });
}

// Whether the backward launch of a node has work in an architecture.
inline bool cell_backward_works(const NB201CellParams& p, const CellArchitecture& own, int node) {
  return node == 3 ? p.training && cell_sums_enter(own, node) : fed(own, node);
}

// Every launch of a backward pass. `l` is a part of `launch`, or the whole.
template <class Launch, class Stored>
int launch_cell_backward(Launch& launch, CellLaunch<Stored>& l, void* stream) {
  for (l.node = kCellNodes - 1; l.node >= 0; --l.node) {
    bool works = l.chosen && (l.node < 3 || l.p.training);
    for (int i = 0; !l.chosen && i < l.count; ++i) {
      works |= cell_backward_works(l.p, l.architectures[i], l.node);
    }
    const int error = works ? launch_cell_node_backward(launch, stream) : 0;
    if (error != 0) return error;
  }
  return 0;
}

// The launch by matrix units of a call's architectures from `first` on, without their scratch; or
// how many of them there may be, none if the call is not for it.
template <class Stored>
int64_t make_cell_back(const NB201CellParams& p, int64_t first, CellBackLaunch<Stored>& back) {
  if (!cell_is_aligned(p)) return 0;
  int32_t places = 0;
  back.t.l = cell_launch<Stored>(p, first, places);
  return with_cell_split<Cell32Back>(p.channels, [&](auto split) {
    using Split = decltype(split);
    const auto other = static_cast<int64_t>(cell_backward_bytes<Split>(p.channels));
    return make_cell_tiles<Split>(back.t, other, true) ? make_weight_tiles<Split>(back) : 0;
  });
}

// f(launch, its CellLaunch) for a run of a call's architectures after the other, by matrix units:
// at most `most` of them.
template <class Stored, class F>
int for_each_backward_tile(const NB201CellParams& p, int64_t most, CudaScratch& used, const F& f) {
  CellBackLaunch<Stored> back{};
  int error = 0;
  for (int64_t first = 0; first < p.architectures && error == 0; first += most) {
    back = {};
    make_cell_back(p, first, back);
    back.t.l.count = static_cast<int>(min(int64_t{back.t.l.count}, most));
    find_jobs(back.t.l);
    CellScratch scratch(p);
    take_backward_scratch(back.t.l, scratch);
    const int64_t side = p.channels / (p.channels % 32 == 0 ? 32 : 16);
    back.partials =
        scratch.partials<float>(back.t.l.jobs_count * side * side, back.parts, back.partials.width);
    used = scratch.used();
    error = f(back, back.t.l);
  }
  return error;
}

// The same by the general kernels.
template <class Stored, class F>
int for_each_backward_general(const NB201CellParams& p, CudaScratch& used, const F& f) {
  int error = 0;
  for (int64_t first = 0; first < p.architectures && error == 0; first += kCellMost) {
    int32_t places = 0;
    auto l = cell_launch<Stored>(p, first, places);
    l.blocks = cell_blocks(p, kCellPixels);
    find_jobs(l);
    CellScratch scratch(p);
    take_backward_scratch(l, scratch);
    used = scratch.used();
    error = f(l, l);
  }
  return error;
}

template <class F>
int for_each_backward(const NB201CellParams& p, CudaScratch& used, const F& f) {
  return with_cell_images(p, [&](auto stored) {
    using Stored = decltype(stored);
    if constexpr (kCellTiles<Stored>) {
      CellBackLaunch<Stored> back{};
      const int64_t tiled = make_cell_back(p, 0, back);
      const int64_t most = p.need_weights ? min(tiled, int64_t{kCellMost}) : kCellMost;
      if (tiled > 0) return for_each_backward_tile<Stored>(p, most, used, f);
    }
    return for_each_backward_general<Stored>(p, used, f);
  });
}

}  // namespace cwkernels
