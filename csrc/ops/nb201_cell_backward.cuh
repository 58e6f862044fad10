#pragma once
#include <type_traits>

#include "../parts/tile_weight.cuh"
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

// Of a launch by matrix units, what the gradients of weights need beside it. A convolution's are
// shared out into chunks of kOutputs x kInputs channels, and the pixels into parts, the same for
// every architecture.
struct CellBackLaunch {
  CellTileLaunch t;
  Tiles tiles[2];  // of 1 x 1 and 3 x 3
  Window windows[2];
  int64_t parts;
  Partials<float> partials;  // a slot for each chunk of each job
};
static_assert(sizeof(CellBackLaunch) <= 4096);

// The first launch: one thread four channels of a pixel.
static __global__ void __launch_bounds__(kCellThreads, 1)
    cell_sums_tile(const __grid_constant__ CellBackLaunch p) {
  wait_for_previous();
  const CellLaunch<float>& l = p.t.l;
  const CellOf<float> cell(l, static_cast<int>(blockIdx.y));
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
    const float* raw[kCellFan];
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
  using Results = typename Split::Sums;

  __device__ __forceinline__ CellBackTile(const CellTileLaunch& p, Shared& shared)
      : p_(p),
        through_(shared.take<NormBackward<float>>(static_cast<size_t>(kCellFan * p.l.p.channels))),
        source_(shared.take<float>(static_cast<size_t>(p.source_values))),
        weights_(
            shared.take<float>(static_cast<size_t>((p.resident ? kCellFan : 1) * p.weight_values))),
        rows_(p) {}

  // What all tiles of an architecture share.
  __device__ __forceinline__ void begin(const CellOf<float>& cell) const {
    sync_block();
    cell_make_backward(cell, p_.l.node, through_);
    cell_load_resident<Precision, Split, true>(p_, cell, weights_);
  }

  // Channels from `output` on: through convolutions and their ReLU, then what projections, skips
  // and pools add.
  __device__ __forceinline__ void operator()(const CellOf<float>& cell, const TilePlace& tile,
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
      const float* node = cell.node(p_.l.node) + output;
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
  __device__ __forceinline__ void convolve(const CellOf<float>& cell, const TilePlace& tile,
                                           int target, int output, Results& results) const {
    const int e = edge_between(p_.l.node, target);
    const bool normed = normalised(cell.edge(e));
    const float* grad = cell.grad(target);
    const float* raw = normed ? cell.raw(e) : nullptr;
    const NormBackward<float>* through = through_ + leaving_place(e) * p_.l.p.channels;
    sync_block();
    cell_load_tile<Precision>(
        p_, tile,
        [&](int64_t image, int y, int x, int channel) {
          const int64_t offset =
              ((image * p_.tiles.height + y) * p_.tiles.width + x) * p_.l.p.channels + channel;
          Four own = load_lanes<4>(grad + offset);
          if (!normed) return own;
          const Four value = load_lanes<4>(raw + offset);
#pragma unroll
          for (int i = 0; i < 4; ++i) own[i] = through[channel + i](own[i], value[i]);
          return own;
        },
        source_);
    sync_block();
    cell_convolve_tile<Precision, Split, true>(results, p_, cell, e, output, rows_, source_,
                                               weights_);
  }

  // Adds what a skip or a pool into `target` gives.
  __device__ __forceinline__ void add_plain(const CellOf<float>& cell, const TilePlace& tile,
                                            const CellOutputs<Split>& outputs, int target,
                                            bool pooled, int output, Results& results) const {
    const float* grad = cell.grad(target) + output;
    cell_each_result<Split>(results, outputs, [&](int n, int i, float* pair) {
      const float* from = grad + outputs.offsets[i] + n;
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

  const CellTileLaunch& p_;
  NormBackward<float>* through_;
  float* source_;
  float* weights_;
  CellRows<Split> rows_;
};

// Adds a tile's gradients to a warp's sums of the batch norm of edge e.
template <class Split>
__device__ __forceinline__ void cell_sum_tile(const CellOf<float>& cell, int e, int output,
                                              const CellOutputs<Split>& outputs,
                                              const typename Split::Sums& results,
                                              Sums<float>* sums) {
  const float* raw = cell.raw(e) + output;
  const float* mean = cell.channels(e).mean + output;
#pragma unroll
  for (int j = 0; j < 2 * Split::kN; ++j) {
    const int n = Split::output() + j / 2 * kMmaColumns + lane() % 4 * 2 + j % 2;
    Sums<float> own = Sums<float>::nothing();
#pragma unroll
    for (int i = 0; i < 2 * Split::kM; ++i) {
      if (!(outputs.live >> i & 1)) continue;
      const float grad = results.values[i / 2][j / 2][i % 2 * 2 + j % 2];
      own = own.merged({grad, grad * (raw[outputs.offsets[i] + n] - mean[n])});
    }
    own = {CellOutputs<Split>::sum_over_rows(own.first),
           CellOutputs<Split>::sum_over_rows(own.second)};
    if (lane() < 4) sums[n] = sums[n].merged(own);
  }
}

// The launches of nodes 2 and 1.
template <class Precision, class Split>
__global__ void __launch_bounds__(Split::kThreads, 1)
    cell_backward_tile(const __grid_constant__ CellBackLaunch p) {
  wait_for_previous();
  const CellLaunch<float>& l = p.t.l;
  const CellOf<float> cell(l, static_cast<int>(blockIdx.y));
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
      float* to = cell.grad(l.node) + output;
      cell_each_result<Split>(results, outputs, [&](int n, int i, const float* pair) {
        store_lanes(to + outputs.offsets[i] + n, Two{{pair[0], pair[1]}});
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
template <class Precision, class Split>
__device__ __forceinline__ void cell_input_tiles(const CellTileLaunch& p, int64_t block, int slot,
                                                 int end) {
  Shared shared;
  const CellBackTile<Precision, Split> gradient(p, shared);
  for (; slot < end; ++slot) {
    const CellOf<float> cell(p.l, slot);
    const bool add = p.l.p.shared && cell.a > 0;
    gradient.begin(cell);
    for (int64_t number = block; number < p.tiles.count; number += p.l.blocks) {
      const TilePlace tile = tile_place(p.tiles, number);
      for (int output = 0; output < p.l.p.channels; output += Split::kOutputs) {
        typename Split::Sums results;
        gradient(cell, tile, output, results);
        const CellOutputs<Split> outputs(p, tile);
        float* to = cell.grad(0) + output;
        cell_each_result<Split>(results, outputs, [&](int n, int i, const float* pair) {
          Two own{{pair[0], pair[1]}};
          if (add) {
            const Two before = load_lanes<2>(to + outputs.offsets[i] + n);
            own = {{before[0] + own[0], before[1] + own[1]}};
          }
          store_lanes(to + outputs.offsets[i] + n, own);
        });
      }
    }
  }
}

// What one block has of the gradient of a chunk of weights, of its part of the tiles: written to
// `to`, [kOutputs, kInputs, taps].
template <class Precision, class Split>
__device__ __forceinline__ void cell_weight_part(const CellBackLaunch& p, const CellOf<float>& cell,
                                                 int e, int chunk, int64_t part, Shared& shared,
                                                 float* to) {
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
  const float* grad = cell.grad(target_of(e));
  const float* raw = normed ? cell.raw(e) : nullptr;
  const float* node = cell.node(source_of(e));
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
    load_source<Precision, Split::kInputs, Split::kInputStride>(
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

// Sums the groups' results of a chunk of weights into a row of a bank's gradient, for all
// architectures of the launch that have read it, in order.
template <class Split>
__device__ __forceinline__ void cell_sum_weights(const CellBackLaunch& p, const CellJob& job,
                                                 int chunk) {
  const CellLaunch<float>& l = p.t.l;
  const int channels = static_cast<int>(l.p.channels), inner = channels / Split::kInputs;
  const int chunks = inner * (channels / Split::kOutputs);
  const CellOf<float> first(l, l.jobs[job.leader].architecture);
  const CellChoice& own = first.edge(job.edge);
  float* target = static_cast<float*>(l.p.grad_weights[job.edge][own.bank]) +
                  own.slot * first.weight_size(job.edge);
  constexpr int kRow = Split::kInputs * Split::kTaps;
  for (int i = static_cast<int>(threadIdx.x); i < Split::kOutputs * kRow; i += Split::kThreads) {
    const int64_t k = chunk / inner * Split::kOutputs + i / kRow;
    float* to = target + (k * channels + chunk % inner * Split::kInputs) * Split::kTaps + i % kRow;
    float total = own.again ? *to : 0.0f;
    for (int j = job.leader; j < l.jobs_count; ++j) {
      if (l.jobs[j].leader != job.leader) continue;
      float sum = 0;
      for (int64_t g = 0; g < p.partials.groups(); ++g) {
        sum += load_shared_by_blocks(p.partials.of_group(int64_t{j} * chunks + chunk, g) + i);
      }
      total += sum;
    }
    *to = total;
  }
}

// The last launch's blocks for gradients of weights: one is a part of a chunk of a job. The last of
// each kGroup parts merges theirs, the last of all that a row of a bank gets sums the groups.
template <class Precision, class Split>
__device__ __forceinline__ void cell_weight_tiles(const CellBackLaunch& p, int64_t block) {
  const CellLaunch<float>& l = p.t.l;
  const int side = static_cast<int>(l.p.channels) / Split::kInputs, chunks = side * side;
  const int64_t part = block % p.parts, slot = block / p.parts;
  const int chunk = static_cast<int>(slot % chunks);
  const CellJob& job = l.jobs[slot / chunks];
  const CellOf<float> cell(l, job.architecture);
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
    for (int64_t b = 0; b < members; ++b) {
      sum += load_shared_by_blocks(p.partials.of_block(slot, first + b) + i);
    }
    p.partials.of_group(slot, group)[i] = sum;
  }
  const int64_t leader = int64_t{job.leader} * chunks + chunk;
  const int64_t groups = job.members * p.partials.groups();
  unsigned* whole = tickets + (leader + 1) * p.partials.tickets_per_slot() - 1;
  if (!arrives_last(whole, groups, last)) return;
  cell_sum_weights<Split>(p, job, chunk);
}

// Weights by channels: chunks of 32 x 32 where they divide, else 16 x 16.
template <bool kWide>
using CellWeights =
    std::conditional_t<kWide, WeightSplit<2, 2, 2, 1, 2, 3>, WeightSplit<1, 1, 8, 1, 2, 3>>;
template <bool kWide>
using CellWeightsPointwise =
    std::conditional_t<kWide, WeightSplit<2, 2, 2, 1, 2, 1>, WeightSplit<1, 1, 8, 1, 2, 1>>;
template <class Split>
constexpr bool kCellWide = Split::kOutputs % 32 == 0;

// The last launch: blocks for the input, then blocks for weights.
template <class Precision, class Split>
__global__ void __launch_bounds__(Split::kThreads, 1)
    cell_backward_last_tile(const __grid_constant__ CellBackLaunch p) {
  using Weights = CellWeights<kCellWide<Split>>;
  using Pointwise = CellWeightsPointwise<kCellWide<Split>>;
  static_assert(Weights::kThreads == Split::kThreads && Weights::kInputs == Pointwise::kInputs &&
                Weights::kOutputs == Weights::kInputs && Pointwise::kOutputs == Weights::kOutputs);
  wait_for_previous();
  const CellLaunch<float>& l = p.t.l;
  const int64_t inputs = l.blocks * (l.p.shared ? 1 : l.count), block = blockIdx.x - inputs;
  if (block < 0) {
    const int slot = static_cast<int>(blockIdx.x / l.blocks);
    cell_input_tiles<Precision, Split>(p.t, blockIdx.x % l.blocks, slot,
                                       l.p.shared ? l.count : slot + 1);
    return;
  }
  const int side = static_cast<int>(l.p.channels) / Weights::kInputs;
  const CellJob& job = l.jobs[block / (p.parts * side * side)];
  if (kernel_size(l.architectures[job.architecture].edges[job.edge]) == 3) {
    cell_weight_tiles<Precision, Weights>(p, block);
  } else {
    cell_weight_tiles<Precision, Pointwise>(p, block);
  }
}

// --- Host ----------------------------------------------------------------------------------------

// The convolutions whose weights' gradients a launch makes, architecture by architecture.
template <class T>
void find_jobs(CellLaunch<T>& l) {
  for (int i = 0; l.p.need_weights && i < l.count; ++i) {
    for (int e = 0; e < kCellEdges; ++e) {
      const CellChoice& own = l.architectures[i].edges[e];
      if (!convolves(own)) continue;
      int leader = l.jobs_count;
      for (int j = l.jobs_count - 1; j >= 0; --j) {
        const CellChoice& other = l.architectures[l.jobs[j].architecture].edges[e];
        if (l.jobs[j].edge == e && other.bank == own.bank && other.slot == own.slot) leader = j;
      }
      l.jobs[l.jobs_count++] = {static_cast<int8_t>(i), static_cast<int8_t>(e),
                                static_cast<int8_t>(leader), 0};
      ++l.jobs[leader].members;
    }
  }
  for (int j = 0; j < l.jobs_count; ++j) l.jobs[j].members = l.jobs[l.jobs[j].leader].members;
}

template <class T>
void take_backward_scratch(CellLaunch<T>& l, CellScratch& scratch) {
  l.scratch = scratch.take<T>(l.count * 2 * l.size());
  for (int n = 1; l.p.training && n < kCellNodes; ++n) {
    l.sums[n] = scratch.partials<Sums<T>>(l.count, l.blocks, n * l.p.channels);
  }
}

// The launches of a node: 3, then 2 and 1, then 0.
template <class T>
int launch_cell_node_backward(const CellLaunch<T>& l, void* stream) {
  const Grid grid{l.blocks, l.count};
  const size_t sums = shared_bytes<int>(1) + shared_bytes<Sums<T>>(kCellThreads);
  const size_t through =
      shared_bytes<NormBackward<T>>(static_cast<size_t>(kCellFan * l.p.channels));
  if (l.node == 3) return launch(cell_sums_general<T>, grid, kCellThreads, sums, stream, l);
  if (l.node > 0) {
    return launch(cell_backward_general<T>, grid, kCellThreads, sums + through, stream, l);
  }
  const int64_t blocks =
      l.blocks * (l.p.shared ? 1 : l.count) + l.jobs_count * cell_weight_chunks(l.p.channels);
  return launch(cell_backward_last_general<T>, {blocks}, kCellThreads, through, stream, l);
}

template <class Split>
size_t cell_backward_bytes(int64_t channels) {
  return shared_bytes<int>(1) +
         shared_bytes<Sums<float>>(
             static_cast<size_t>((kCellFan - 1) * Split::kWarpsM * channels)) +
         shared_bytes<NormBackward<float>>(static_cast<size_t>(kCellFan * channels));
}

template <class Split>
size_t cell_weight_bytes(const Tiles& tiles) {
  return shared_bytes<int>(1) + shared_bytes<NormBackward<float>>(Split::kOutputs) +
         shared_bytes<int>(Split::kPixels) +
         shared_bytes<float>(static_cast<size_t>(Split::values(tiles.source_pixels())));
}

template <class Precision, class Split>
int launch_cell_tile_backward(const CellBackLaunch& p, void* stream) {
  using Weights = CellWeights<kCellWide<Split>>;
  using Pointwise = CellWeightsPointwise<kCellWide<Split>>;
  const CellLaunch<float>& l = p.t.l;
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

inline int launch_cell_node_backward(const CellBackLaunch& p, void* stream) {
  const CellLaunch<float>& l = p.t.l;
  if (l.node == 3) {
    const size_t sums = shared_bytes<int>(1) + shared_bytes<Sums<float>>(kCellThreads);
    return launch(cell_sums_tile, {l.blocks, l.count}, kCellThreads, sums, stream, p);
  }
  return with_cell_split(l.p.channels, [&](auto split) {
    return l.p.winograd ? launch_cell_tile_backward<Tf32, decltype(split)>(p, stream)
                        : launch_cell_tile_backward<Tf32x3, decltype(split)>(p, stream);
  });
}

// Whether the backward launch of a node has work in an architecture.
inline bool cell_backward_works(const NB201CellParams& p, const CellArchitecture& own, int node) {
  return node == 3 ? p.training && cell_sums_enter(own, node) : fed(own, node);
}

// Every launch of a backward pass. `l` is a part of `launch`, or the whole.
template <class Launch, class T>
int launch_cell_backward(Launch& launch, CellLaunch<T>& l, void* stream) {
  for (l.node = kCellNodes - 1; l.node >= 0; --l.node) {
    bool works = false;
    for (int i = 0; i < l.count; ++i) {
      works |= cell_backward_works(l.p, l.architectures[i], l.node);
    }
    const int error = works ? launch_cell_node_backward(launch, stream) : 0;
    if (error != 0) return error;
  }
  return 0;
}

// How the gradients of weights are shared out: two blocks a processor for six convolutions. The
// partial results of one architecture have at most kCellWorkspace bytes; returns whether they do,
// and how many architectures' have.
constexpr int64_t kCellWorkspace = int64_t{32} << 20;
template <class Split>
int64_t make_weight_tiles(CellBackLaunch& p) {
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

// The launch by matrix units of a call's architectures from `first` on, without their scratch; or
// how many of them there may be, none if the call is not for it.
inline int64_t make_cell_back(const NB201CellParams& p, int64_t first, CellBackLaunch& back) {
  if (!cell_is_aligned(p)) return 0;
  int32_t places = 0;
  back.t.l = cell_launch<float>(p, first, places);
  return with_cell_split(p.channels, [&](auto split) {
    using Split = decltype(split);
    const auto other = static_cast<int64_t>(cell_backward_bytes<Split>(p.channels));
    return make_cell_tiles<Split>(back.t, other, true) ? make_weight_tiles<Split>(back) : 0;
  });
}

// f(launch, its CellLaunch) for a run of a call's architectures after the other.
template <class F>
int for_each_backward(const NB201CellParams& p, CudaScratch& used, const F& f) {
  CellBackLaunch back{};
  const int64_t tiled = make_cell_back(p, 0, back);
  const int64_t most = tiled > 0 && p.need_weights ? min(tiled, int64_t{kCellMost}) : kCellMost;
  int error = 0;
  const auto general = [&](auto type, int64_t first) {
    int32_t places = 0;
    auto l = cell_launch<decltype(type)>(p, first, places);
    l.blocks = cell_blocks(p, kCellPixels);
    find_jobs(l);
    CellScratch scratch(p);
    take_backward_scratch(l, scratch);
    used = scratch.used();
    return f(l, l);
  };
  for (int64_t first = 0; first < p.architectures && error == 0; first += most) {
    if (tiled == 0) {
      error = p.double_precision ? general(double(), first) : general(float(), first);
      continue;
    }
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

}  // namespace cwkernels
