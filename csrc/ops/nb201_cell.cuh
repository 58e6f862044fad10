#pragma once
#include "../parts/cell.cuh"

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
// (1 + 3) + (1 + 1 + 2) + (2 + 1 + 1) + (3 + 1) = 16 of them, 268 MB.
//
// In evaluation, if nothing is kept, 3 launches: statistics are known, so launch n normalises what
// its convolutions give, adds what skips and pools give of node n, and accumulates it into the
// nodes that the edges enter, in the order of the edges. (1 + 3) + (1 + 2 x 2) + (1 + 2 x 1) = 12
// tensors, 201 MB.
//
// Blocks: at most two a processor for each architecture, 264 on an H100, each with its run of
// pixels, so that statistics are few partial results and do not depend on the other architectures.
namespace cwkernels {

constexpr int kCellThreads = 256;
// Pixels that a block of the general kernels is worth starting for.
constexpr int64_t kCellPixels = 32;

// How the general kernels share out a block's pixels and channels: `rows` rows of `columns`
// threads, powers of two; a thread has one channel of each run of `columns` at a time.
struct CellThreads {
  int columns, rows, row, column;
  int64_t begin, end;  // pixels

  template <class T>
  __device__ CellThreads(const CellLaunch<T>& l, int64_t block) {
    columns = 1;
    while (columns < kCellThreads && columns < l.p.channels) columns *= 2;
    rows = kCellThreads / columns;
    row = static_cast<int>(threadIdx.x) / columns;
    column = static_cast<int>(threadIdx.x) % columns;
    const int64_t share = (l.pixels() + l.blocks - 1) / l.blocks;
    begin = block * share;
    end = begin + share < l.pixels() ? begin + share : l.pixels();
  }
};

// What an edge without weights gives of a stored node, one value.
template <class T>
__device__ T cell_plain_value(const CellOf<T>& cell, int e, const CellPixel& at, int64_t c) {
  const T* from = cell.node(source_of(e)) + c;
  if (!is(cell.edge(e), CellCode::average_pool)) return from[cell.offset(at, at.y, at.x)];
  T sum = T(0);
  cell.around(at, [&](int64_t y, int64_t x) { sum += from[cell.offset(at, y, x)]; });
  return sum / cell.window(at.y, at.x);
}

// The value of a node, one element at a time: read where it is stored, or summed on its load.
template <class T>
class CellNodeValue {
 public:
  // `norms` has room for kCellFan coefficients of each channel, which all threads make.
  __device__ CellNodeValue(const CellOf<T>& cell, int node, Norm<T>* norms)
      : cell_(cell), node_(node), norms_(norms) {
    summed_ = node == 3 || (node > 0 && cell.own.origins[node] == node);
    for (int e = 0; summed_ && e < kCellEdges; ++e) {
      if (!enters(cell.own, e, node) || !normalised(cell.edge(e))) continue;
      for (int64_t c = threadIdx.x; c < cell.l.p.channels; c += kCellThreads) {
        norms[entering_place(e) * cell.l.p.channels + c] = cell.norm(e, c);
        if (blockIdx.x == 0 && cell.l.p.training) leave_statistics(e, c);
      }
    }
  }

  __device__ T operator()(const CellPixel& at, int64_t y, int64_t x, int64_t c) const {
    if (!summed_) return cell_.node(node_)[cell_.offset(at, y, x) + c];
    const CellPixel here{at.image, y, x};
    T sum = T(0);
    bool begun = false;
    for (int e = 0; e < kCellEdges; ++e) {
      if (!enters(cell_.own, e, node_)) continue;
      const T own = term(e, here, c);
      sum = begun ? sum + own : own;
      begun = true;
    }
    return sum;
  }

 private:
  __device__ T term(int e, const CellPixel& at, int64_t c) const {
    if (!convolves(cell_.edge(e))) return cell_plain_value(cell_, e, at, c);
    const T raw = cell_.raw(e)[cell_.offset(at, at.y, at.x) + c];
    return normalised(cell_.edge(e)) ? norms_[entering_place(e) * cell_.l.p.channels + c](raw)
                                     : raw;
  }
  __device__ void leave_statistics(int e, int64_t c) const {
    const Moments<T> own = cell_.measured(e, c);
    cell_.statistics(e)[c] = own.mean;
    cell_.statistics(e)[cell_.l.p.channels + c] = own.variance();
  }

  const CellOf<T>& cell_;
  int node_;
  Norm<T>* norms_;
  bool summed_;
};

// One output of the convolution of an edge, of node values that value(y, x, c) gives.
template <class T, class Value>
__device__ T cell_convolve(const CellOf<T>& cell, int e, const CellPixel& at, int64_t k,
                           const Value& value) {
  const int64_t size = kernel_size(cell.edge(e)), channels = cell.l.p.channels;
  const bool rectified = normalised(cell.edge(e));
  const T* weight = cell.weight(e) + k * channels * size * size;
  T sum = T(0);
  for (int64_t tap = 0; tap < size * size; ++tap) {
    const int64_t y = at.y + tap / size - size / 2, x = at.x + tap % size - size / 2;
    if (!cell.inside(y, x)) continue;
    for (int64_t c = 0; c < channels; ++c) {
      const T own = value(y, x, c);
      sum += weight[c * size * size + tap] * (rectified ? rectify(own) : own);
    }
  }
  return sum;
}

// Whether launch `node` has work in an architecture.
__host__ __device__ inline bool cell_forward_works(const CellArchitecture& own, int node) {
  bool any = node == 3 || own.nodes[node] != kNowhere;
  for (int e = 0; e < kCellEdges; ++e) any |= leaves(own, e, node) && convolves(own.edges[e]);
  return any;
}

// Merges what the rows of a block have measured of a run of channels, and leaves it as the block's
// partial result of place `at` of its slot.
template <class T>
__device__ void cell_leave_rows(const Partials<Moments<T>>& to, int slot, const CellThreads& on,
                                const Moments<T>& own, Moments<T>* merging, int64_t at, bool live) {
  const Moments<T> whole = merge_rows(own, merging, on.rows, on.columns);
  if (on.row == 0 && live) to.of_block(slot, blockIdx.x)[at] = whole;
  sync_block();
}

// Any number of channels, float and double; one thread an output, its node values computed on the
// fly. Shared memory: 36 bytes a channel and 3 KB (float).
template <class T>
__global__ void __launch_bounds__(kCellThreads)
    cell_forward_general(const __grid_constant__ CellLaunch<T> l) {
  wait_for_previous();
  const CellOf<T> cell(l, static_cast<int>(blockIdx.y));
  if (!cell_forward_works(cell.own, l.node)) return;
  const int64_t channels = l.p.channels;
  Shared shared;
  int* last = shared.take<int>(1);
  Moments<T>* merging = shared.take<Moments<T>>(kCellThreads);
  Norm<T>* norms = shared.take<Norm<T>>(static_cast<size_t>(kCellFan * channels));
  const CellNodeValue<T> value(cell, l.node, norms);
  sync_block();
  const CellThreads on(l, blockIdx.x);
  const Partials<Moments<T>>& moments = l.moments[l.node];
  T* store = l.node == 3 ? cell.output() : nullptr;
  if (l.node > 0 && l.node < 3 && cell.own.nodes[l.node] != kNowhere) {
    store = l.at(cell.own.nodes[l.node]);
  }
  for (int64_t k = on.column; k - on.column < channels; k += on.columns) {
    const int64_t end = k < channels ? on.end : on.begin;
    Moments<T> measured = Moments<T>::nothing();
    for (int64_t i = on.begin + on.row; store && i < end; i += on.rows) {
      const CellPixel at = cell.pixel(i);
      const T own = value(at, at.y, at.x, k);
      store[i * channels + k] = own;
      measured = measured.merged({T(1), own, T(0)});
    }
    if (l.node == 3 && l.p.training) {
      cell_leave_rows(moments, cell.slot, on, measured, merging, k, k < channels);
    }
    for (int e = 0; e < kCellEdges; ++e) {
      if (source_of(e) != l.node) continue;
      measured = Moments<T>::nothing();
      for (int64_t i = on.begin + on.row; convolves(cell.edge(e)) && i < end; i += on.rows) {
        const CellPixel at = cell.pixel(i);
        const T own = cell_convolve(
            cell, e, at, k, [&](int64_t y, int64_t x, int64_t c) { return value(at, y, x, c); });
        cell.raw(e)[i * channels + k] = own;
        measured = measured.merged({T(1), own, T(0)});
      }
      if (!l.p.training) continue;
      cell_leave_rows(moments, cell.slot, on, measured, merging, leaving_place(e) * channels + k,
                      k < channels);
    }
  }
  allow_next();
  if (!l.p.training) return;
  const Moments<T>* mine = moments.of_block(cell.slot, blockIdx.x);
  const auto own = [&](int64_t i) { return mine[i]; };
  if (l.node < 3) {
    leave_partial(moments, cell.slot, blockIdx.x, last, own);
    return;
  }
  T* whole = static_cast<T*>(l.p.output_statistics) + cell.a * 2 * channels;
  leave_partial(moments, cell.slot, blockIdx.x, last, own, [&](int64_t c, const Moments<T>& sum) {
    whole[c] = sum.mean;
    whole[channels + c] = sum.variance();
  });
}

// In evaluation, with nothing kept: what leaves node l.node is added to the nodes that it enters.
template <class T>
__global__ void __launch_bounds__(kCellThreads)
    cell_evaluate_general(const __grid_constant__ CellLaunch<T> l) {
  wait_for_previous();
  const CellOf<T> cell(l, static_cast<int>(blockIdx.y));
  const CellThreads on(l, blockIdx.x);
  const int64_t channels = l.p.channels;
  for (int64_t k = on.column; k < channels; k += on.columns) {
    for (int64_t i = on.begin + on.row; i < on.end; i += on.rows) {
      const CellPixel at = cell.pixel(i);
      if (l.node == 0 && !fed(cell.own, 3)) cell.output()[i * channels + k] = T(0);
      for (int e = 0; e < kCellEdges; ++e) {
        const int target = target_of(e);
        if (!leaves(cell.own, e, l.node)) continue;
        if (target < 3 && cell.own.nodes[target] == kNowhere) continue;  // read where it comes from
        T own;
        if (convolves(cell.edge(e))) {
          const T* node = cell.node(l.node);
          own = cell_convolve(cell, e, at, k, [&](int64_t y, int64_t x, int64_t c) {
            return node[cell.offset(at, y, x) + c];
          });
          if (normalised(cell.edge(e))) own = cell.channels(e).norm(k)(own);
        } else {
          own = cell_plain_value(cell, e, at, k);
        }
        T* to = (target == 3 ? cell.output() : l.at(cell.own.nodes[target])) + i * channels + k;
        bool begun = false;
        for (int before = 0; before < e; ++before) begun |= enters(cell.own, before, target);
        *to = begun ? *to + own : own;
      }
    }
  }
  allow_next();
}

// --- Host ----------------------------------------------------------------------------------------

// The architectures from `first` on, with their scratch.
template <class T>
CellLaunch<T> cell_forward_plan(const NB201CellParams& p, int64_t first, CudaScratch& used) {
  int32_t places = 0;
  CellLaunch<T> l = cell_launch<T>(p, first, cell_blocks(p, kCellPixels), places);
  CellScratch scratch(p);
  l.scratch = scratch.take<T>(places * l.size());
  for (int n = 0; n < kCellNodes; ++n) {
    const int64_t width = n == 3 ? 1 : kCellFan - n;
    if (p.training)
      l.moments[n] = scratch.partials<Moments<T>>(l.count, l.blocks, width * p.channels);
  }
  used = scratch.used();
  return l;
}

template <class T>
int launch_cell_forward(const NB201CellParams& p, CellLaunch<T> l, void* stream) {
  const Grid grid{l.blocks, l.count};
  const size_t shared = shared_bytes<int>(1) + shared_bytes<Moments<T>>(kCellThreads) +
                        shared_bytes<Norm<T>>(static_cast<size_t>(kCellFan * p.channels));
  for (l.node = 0; l.node < kCellNodes; ++l.node) {
    bool works = false;
    for (int i = 0; i < l.count; ++i) {
      const CellArchitecture& own = l.architectures[i];
      if (!is_fused(p)) works |= cell_forward_works(own, l.node);
      for (int e = 0; is_fused(p) && e < kCellEdges; ++e) works |= leaves(own, e, l.node);
      works |= is_fused(p) && l.node == 0 && !fed(own, 3);
    }
    if (!works) continue;
    const int error = is_fused(p)
                          ? launch(cell_evaluate_general<T>, grid, kCellThreads, 0, stream, l)
                          : launch(cell_forward_general<T>, grid, kCellThreads, shared, stream, l);
    if (error != 0) return error;
  }
  return 0;
}

}  // namespace cwkernels
