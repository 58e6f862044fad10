#pragma once
#include "../parts/cell.cuh"

// The kernels of a cell that run every valid shape, in float and double: one thread an output, and
// whatever an output needs of a node or of a gradient computed on the fly, again for each that
// needs it. The launches are those of nb201_cell.cuh.
namespace cwkernels {

constexpr int kCellThreads = 256;
// Pixels that a block of the general kernels is worth starting for.
constexpr int64_t kCellPixels = 32;

// How the general kernels share out a block's pixels and channels: `rows` rows of `columns`
// threads, powers of two; a thread has one channel of each run of `columns` at a time.
struct CellThreads {
  int columns, rows, row, column;
  int begin, end;  // pixels

  template <class Stored>
  __device__ CellThreads(const CellLaunch<Stored>& l, int64_t block, int64_t wanted) {
    columns = 1;
    while (columns < kCellThreads && columns < wanted) columns *= 2;
    rows = kCellThreads / columns;
    row = static_cast<int>(threadIdx.x) / columns;
    column = static_cast<int>(threadIdx.x) % columns;
    const int pixels = static_cast<int>(l.pixels()), blocks = static_cast<int>(l.blocks);
    const int share = (pixels + blocks - 1) / blocks;
    begin = min(static_cast<int>(block) * share, pixels);
    end = min(begin + share, pixels);
  }
};

// What an edge without weights gives of a stored node, one value.
template <class Stored, class T = Computed<Stored>>
__device__ T cell_plain_value(const CellOf<Stored>& cell, int e, const CellPixel& at, int64_t c) {
  const Stored* from = cell.node(source_of(e)) + c;
  if (!is(cell.edge(e), CellCode::average_pool)) {
    return load_stored(from + cell.offset(at, at.y, at.x));
  }
  T sum = T(0);
  cell.around(at, [&](int y, int x) { sum += load_stored(from + cell.offset(at, y, x)); });
  return sum / static_cast<T>(cell.window(at.y, at.x));
}

// The value of a node, one element at a time: read where it is stored, or summed on its load.
template <class Stored>
class CellNodeValue {
 public:
  using T = Computed<Stored>;

  // `norms` from cell_make_norms.
  __device__ CellNodeValue(const CellOf<Stored>& cell, int node, const Norm<T>* norms)
      : cell_(cell), node_(node), norms_(norms) {}

  __device__ T operator()(const CellPixel& at, int y, int x, int64_t c) const {
    if (!is_summed(cell_.own, node_)) {
      return load_stored(cell_.node(node_) + cell_.offset(at, y, x) + c);
    }
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
    const T raw = load_stored(cell_.raw(e) + cell_.offset(at, at.y, at.x) + c);
    return normalised(cell_.edge(e)) ? norms_[entering_place(e) * cell_.l.p.channels + c](raw)
                                     : raw;
  }

  const CellOf<Stored>& cell_;
  int node_;
  const Norm<T>* norms_;
};

// One output of the convolution of an edge, of node values that value(y, x, c) gives.
template <class Stored, class Value, class T = Computed<Stored>>
__device__ T cell_convolve(const CellOf<Stored>& cell, int e, const CellPixel& at, int64_t k,
                           const Value& value) {
  const int size = kernel_size(cell.edge(e));
  const int64_t channels = cell.l.p.channels;
  const bool rectified = normalised(cell.edge(e));
  const T* weight = cell.weight(e) + k * channels * size * size;
  T sum = T(0);
  for (int tap = 0; tap < size * size; ++tap) {
    const int y = at.y + tap / size - size / 2, x = at.x + tap % size - size / 2;
    if (!cell.inside(y, x)) continue;
    for (int64_t c = 0; c < channels; ++c) {
      const T own = value(y, x, c);
      sum += weight[c * size * size + tap] * (rectified ? rectify(own) : own);
    }
  }
  return sum;
}

// Merges what the rows of a block have measured of a run of channels, and leaves it as the block's
// partial result of place `at` of its slot.
template <class Value>
__device__ __forceinline__ void cell_leave_rows(const Partials<Value>& to, int slot,
                                                const CellThreads& on, const Value& own,
                                                Value* merging, int64_t at, bool live) {
  const Value whole = merge_rows(own, merging, on.rows, on.columns);
  if (on.row == 0 && live) to.of_block(slot, blockIdx.x)[at] = whole;
  sync_block();
}

// Any number of channels, float and double; one thread an output, its node values computed on the
// fly. Shared memory: 36 bytes a channel and 3 KB (float).
template <class Stored>
__global__ void __launch_bounds__(kCellThreads, 1)
    cell_forward_general(const __grid_constant__ CellLaunch<Stored> l) {
  using T = Computed<Stored>;
  wait_for_previous();
  const CellOf<Stored> cell(l, static_cast<int>(blockIdx.y));
  if (!cell_forward_works(cell.own, l.node)) return;
  const int64_t channels = l.p.channels;
  Shared shared;
  int* last = shared.take<int>(1);
  Moments<T>* merging = shared.take<Moments<T>>(kCellThreads);
  Norm<T>* norms = shared.take<Norm<T>>(static_cast<size_t>(kCellFan * channels));
  cell_make_norms(cell, l.node, norms);
  sync_block();
  const CellNodeValue<Stored> value(cell, l.node, norms);
  const CellThreads on(l, blockIdx.x, channels);
  const Partials<Moments<T>>& moments = l.moments[l.node];
  Stored* store = l.node == 3 ? cell.output() : nullptr;
  if (l.node > 0 && l.node < 3 && cell.own.nodes[l.node] != kNowhere) {
    store = l.at(cell.own.nodes[l.node]);
  }
  for (int64_t k = on.column; k - on.column < channels; k += on.columns) {
    const int64_t end = k < channels ? on.end : on.begin;
    Moments<T> measured = Moments<T>::nothing();
    for (int i = on.begin + on.row; store && i < end; i += on.rows) {
      const CellPixel at = cell.pixel(i);
      const T own = value(at, at.y, at.x, k);
      store_stored(store + i * channels + k, own);
      measured = measured.merged({T(1), own, T(0)});
    }
    if (l.node == 3 && l.p.training) {
      cell_leave_rows(moments, cell.slot, on, measured, merging, k, k < channels);
    }
    for (int e = 0; e < kCellEdges; ++e) {
      if (source_of(e) != l.node) continue;
      measured = Moments<T>::nothing();
      for (int i = on.begin + on.row; convolves(cell.edge(e)) && i < end; i += on.rows) {
        const CellPixel at = cell.pixel(i);
        const T own = cell_convolve(cell, e, at, k,
                                    [&](int y, int x, int64_t c) { return value(at, y, x, c); });
        store_stored(cell.raw(e) + i * channels + k, own);
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
template <class Stored>
__global__ void __launch_bounds__(kCellThreads, 1)
    cell_evaluate_general(const __grid_constant__ CellLaunch<Stored> l) {
  using T = Computed<Stored>;
  wait_for_previous();
  const CellOf<Stored> cell(l, static_cast<int>(blockIdx.y));
  const int64_t channels = l.p.channels;
  const CellThreads on(l, blockIdx.x, channels);
  for (int64_t k = on.column; k < channels; k += on.columns) {
    for (int i = on.begin + on.row; i < on.end; i += on.rows) {
      const CellPixel at = cell.pixel(i);
      if (l.node == 0 && !fed(cell.own, 3)) {
        store_stored(cell.output() + i * channels + k, T(0));
      }
      for (int e = 0; e < kCellEdges; ++e) {
        const int target = target_of(e);
        if (source_of(e) != l.node || !cell_adds(cell.own, e)) continue;
        T own;
        if (convolves(cell.edge(e))) {
          const Stored* node = cell.node(l.node);
          own = cell_convolve(cell, e, at, k, [&](int y, int x, int64_t c) {
            return load_stored(node + cell.offset(at, y, x) + c);
          });
          if (normalised(cell.edge(e))) own = cell.channels(e).norm(k)(own);
        } else {
          own = cell_plain_value(cell, e, at, k);
        }
        Stored* to = cell.stored(target) + i * channels + k;
        store_stored(to, cell_begins(cell.own, e) ? own : load_stored(to) + own);
      }
    }
  }
  allow_next();
}

}  // namespace cwkernels
