#pragma once
#include "../parts/cell_jobs.cuh"
#include "nb201_cell_general.cuh"

// The backward pass of nb201_cell_general.cuh; the launches are those of nb201_cell_backward.cuh.
namespace cwkernels {

// The sums of the batch norms that enter a node, over a block's pixels of one channel k that a
// thread visits; `grad(i)` gives the node's gradient at pixel i.
template <class Stored>
struct CellSums {
  using T = Computed<Stored>;

  Sums<T> own[kCellFan];
  T mean[kCellFan];

  __device__ CellSums(const CellOf<Stored>& cell, int node, int64_t k) {
    for (int j = 0; j < kCellFan; ++j) own[j] = Sums<T>::nothing(), mean[j] = T(0);
    for (int e = 0; k < cell.l.p.channels && e < kCellEdges; ++e) {
      if (takes(cell, node, e)) mean[entering_place(e)] = load_global(cell.channels(e).mean + k);
    }
  }
  __device__ static bool takes(const CellOf<Stored>& cell, int node, int e) {
    return cell.l.p.training && target_of(e) == node && normalised(cell.edge(e));
  }
  __device__ void add(const CellOf<Stored>& cell, int node, int64_t offset, T grad) {
    for (int e = 0; e < kCellEdges; ++e) {
      if (!takes(cell, node, e)) continue;
      const int j = entering_place(e);
      own[j] = own[j].merged({grad, grad * (load_stored(cell.raw(e) + offset) - mean[j])});
    }
  }
};

// The sums of a run of channels, of a block, as its partial results.
template <class Stored, class T = Computed<Stored>>
__device__ void cell_leave_sums(const CellLaunch<Stored>& l, const CellOf<Stored>& cell,
                                const CellThreads& on, const CellSums<Stored>& sums,
                                Sums<T>* merging, int64_t k) {
  for (int j = 0; j < l.node; ++j) {
    cell_leave_rows(l.sums[l.node], cell.slot, on, sums.own[j], merging, j * l.p.channels + k,
                    k < l.p.channels);
  }
}

template <class Stored, class T = Computed<Stored>>
__device__ void cell_merge_sums(const CellLaunch<Stored>& l, const CellOf<Stored>& cell,
                                int* last) {
  const Sums<T>* mine = l.sums[l.node].of_block(cell.slot, blockIdx.x);
  leave_partial(l.sums[l.node], cell.slot, blockIdx.x, last, [&](int64_t i) { return mine[i]; });
}

__host__ __device__ inline bool cell_sums_enter(const CellArchitecture& own, int node) {
  bool any = false;
  for (int e = 0; e < kCellEdges; ++e) {
    any |= target_of(e) == node && normalised(own.edges[e]);
  }
  return any;
}

// The first launch.
template <class Stored>
__global__ void __launch_bounds__(kCellThreads, 1)
    cell_sums_general(const __grid_constant__ CellLaunch<Stored> l) {
  using T = Computed<Stored>;
  wait_for_previous();
  const CellOf<Stored> cell(l, static_cast<int>(blockIdx.y));
  if (!cell_sums_enter(cell.own, l.node)) return;
  Shared shared;
  int* last = shared.take<int>(1);
  Sums<T>* merging = shared.take<Sums<T>>(kCellThreads);
  const int64_t channels = l.p.channels;
  const CellThreads on(l, blockIdx.x, channels);
  for (int64_t k = on.column; k - on.column < channels; k += on.columns) {
    CellSums<Stored> sums(cell, l.node, k);
    for (int i = on.begin + on.row; k < channels && i < on.end; i += on.rows) {
      const int64_t offset = i * channels + k;
      sums.add(cell, l.node, offset, load_stored(cell.grad(l.node) + offset));
    }
    cell_leave_sums(l, cell, on, sums, merging, k);
  }
  allow_next();
  cell_merge_sums(l, cell, last);
}

// The gradient of a convolution's raw output, one element; a projection's is that of its node.
template <class Stored, class T = Computed<Stored>>
__device__ __forceinline__ T cell_raw_gradient(const CellOf<Stored>& cell, int e, int64_t offset,
                                               const NormBackward<T>& through) {
  const T grad = load_stored(cell.grad(target_of(e)) + offset);
  return normalised(cell.edge(e)) ? through(grad, load_stored(cell.raw(e) + offset)) : grad;
}

// What the convolution of an edge gives to the gradient of channel c of its node at a pixel.
template <class Stored, class T = Computed<Stored>>
__device__ T cell_convolve_back(const CellOf<Stored>& cell, int e, const CellPixel& at, int64_t c,
                                const NormBackward<T>* through) {
  const int size = kernel_size(cell.edge(e));
  const int64_t channels = cell.l.p.channels;
  const T* weight = cell.weight(e) + c * size * size;
  T sum = T(0);
  for (int tap = 0; tap < size * size; ++tap) {
    const int y = at.y - tap / size + size / 2, x = at.x - tap % size + size / 2;
    if (!cell.inside(y, x)) continue;
    const int64_t offset = cell.offset(at, y, x);
    for (int64_t k = 0; k < channels; ++k) {
      sum += weight[k * channels * size * size + tap] *
             cell_raw_gradient(cell, e, offset + k, through[k]);
    }
  }
  return sum;
}

// The gradient of a node at a pixel, one channel: through convolutions and their ReLU, then what
// projections, skips and pools add.
template <class Stored, class T = Computed<Stored>>
__device__ T cell_gradient(const CellOf<Stored>& cell, int node, const CellPixel& at, int64_t c,
                           const NormBackward<T>* through) {
  const int64_t offset = cell.offset(at, at.y, at.x) + c;
  T sum = T(0);
  bool rectified = false;
  for (int e = 0; e < kCellEdges; ++e) {
    if (!leaves(cell.own, e, node) || !normalised(cell.edge(e))) continue;
    sum += cell_convolve_back(cell, e, at, c, through + leaving_place(e) * cell.l.p.channels);
    rectified = true;
  }
  if (rectified && load_stored(cell.node(node) + offset) <= T(0)) sum = T(0);
  for (int e = 0; e < kCellEdges; ++e) {
    if (!leaves(cell.own, e, node) || normalised(cell.edge(e))) continue;
    const Stored* from = cell.grad(target_of(e));
    if (convolves(cell.edge(e))) {
      sum += cell_convolve_back(cell, e, at, c, through);
    } else if (is(cell.edge(e), CellCode::average_pool)) {
      cell.around(at, [&](int y, int x) {
        sum += load_stored(from + cell.offset(at, y, x) + c) / static_cast<T>(cell.window(y, x));
      });
    } else {
      sum += load_stored(from + offset);
    }
  }
  return sum;
}

// Makes the coefficients of the batch norms that leave a node; all threads.
template <class Stored, class T = Computed<Stored>>
__device__ void cell_make_backward(const CellOf<Stored>& cell, int node, NormBackward<T>* through) {
  const int64_t channels = cell.l.p.channels;
  for (int e = 0; e < kCellEdges; ++e) {
    if (source_of(e) != node || !normalised(cell.edge(e))) continue;
    for (int64_t c = threadIdx.x; c < channels; c += blockDim.x) {
      through[leaving_place(e) * channels + c] = cell.norm_backward(e, c);
    }
  }
}

// The launches of nodes 2 and 1. Shared memory: 48 bytes a channel and 2 KB (float).
template <class Stored>
__global__ void __launch_bounds__(kCellThreads, 1)
    cell_backward_general(const __grid_constant__ CellLaunch<Stored> l) {
  using T = Computed<Stored>;
  wait_for_previous();
  const CellOf<Stored> cell(l, static_cast<int>(blockIdx.y));
  if (!fed(cell.own, l.node)) return;
  Shared shared;
  int* last = shared.take<int>(1);
  Sums<T>* merging = shared.take<Sums<T>>(kCellThreads);
  const int64_t channels = l.p.channels;
  NormBackward<T>* through = shared.take<NormBackward<T>>(static_cast<size_t>(kCellFan * channels));
  cell_make_backward(cell, l.node, through);
  sync_block();
  const CellThreads on(l, blockIdx.x, channels);
  for (int64_t k = on.column; k - on.column < channels; k += on.columns) {
    CellSums<Stored> sums(cell, l.node, k);
    for (int i = on.begin + on.row; k < channels && i < on.end; i += on.rows) {
      const T own = cell_gradient(cell, l.node, cell.pixel(i), k, through);
      store_stored(cell.grad(l.node) + i * channels + k, own);
      sums.add(cell, l.node, i * channels + k, own);
    }
    if (l.p.training) cell_leave_sums(l, cell, on, sums, merging, k);
  }
  allow_next();
  if (l.p.training) cell_merge_sums(l, cell, last);
}

// The last launch's blocks for the input's gradient. Of images that all architectures share it is
// their sum in order, which one thread of one block adds up.
template <class Stored, class T = Computed<Stored>>
__device__ void cell_input_gradient(const CellLaunch<Stored>& l, int64_t block, int slot, int end) {
  Shared shared;
  const int64_t channels = l.p.channels;
  NormBackward<T>* through = shared.take<NormBackward<T>>(static_cast<size_t>(kCellFan * channels));
  for (; slot < end; ++slot) {
    const CellOf<Stored> cell(l, slot);
    sync_block();
    cell_make_backward(cell, 0, through);
    sync_block();
    const CellThreads on(l, block, channels);
    for (int64_t k = on.column; k < channels; k += on.columns) {
      for (int i = on.begin + on.row; i < on.end; i += on.rows) {
        const T own = cell_gradient(cell, 0, cell.pixel(i), k, through);
        Stored* to = cell.grad(0) + i * channels + k;
        store_stored(to, l.p.shared && cell.a > 0 ? load_stored(to) + own : own);
      }
    }
  }
}

// The gradient of one weight in one architecture, image after image.
template <class Stored, class T = Computed<Stored>>
__device__ T cell_weight_gradient(const CellOf<Stored>& cell, int e, int64_t k, int64_t c,
                                  int tap) {
  NormBackward<T> through{};
  if (normalised(cell.edge(e))) through = cell.norm_backward(e, k);
  const int size = kernel_size(cell.edge(e));
  const int image = static_cast<int>(cell.l.p.height * cell.l.p.width);
  const int pixels = static_cast<int>(cell.l.pixels());
  const Stored* node = cell.node(source_of(e));
  T total = T(0), sum = T(0);
  for (int i = 0; i < pixels; ++i) {
    const CellPixel at = cell.pixel(i);
    if (i % image == 0) total += sum, sum = T(0);
    const int y = at.y + tap / size - size / 2, x = at.x + tap % size - size / 2;
    if (!cell.inside(y, x)) continue;
    const T value = load_stored(node + cell.offset(at, y, x) + c);
    const T grad = cell_raw_gradient(cell, e, i * cell.l.p.channels + k, through);
    sum += grad * (normalised(cell.edge(e)) ? rectify(value) : value);
  }
  return total + sum;
}

// The last launch's blocks for the gradients of weights, a thread for each weight of a row. All
// architectures of the launch that have read the row are added up by it, in order.
template <class Stored, class T = Computed<Stored>>
__device__ void cell_weight_gradients(const CellLaunch<Stored>& l, const CellJob& job, int64_t i) {
  const int e = job.edge;
  const CellOf<Stored> first(l, job.first);
  const CellChoice& own = first.edge(e);
  if (i >= first.weight_size(e)) return;
  const int taps = kernel_size(own) * kernel_size(own);
  const auto number = static_cast<uint32_t>(i), channels = static_cast<uint32_t>(l.p.channels);
  const uint32_t pair = number / taps, k = pair / channels, c = pair - k * channels;
  T* to = static_cast<T*>(l.p.grad_weights[e][own.bank]) + own.slot * first.weight_size(e) + i;
  T total = own.again ? *to : T(0);
  for (int slot = job.first; slot < l.count; ++slot) {
    if (!(job.readers >> slot & 1)) continue;
    const CellOf<Stored> cell(l, slot);
    total += cell_weight_gradient(cell, e, k, c, static_cast<int>(number - pair * taps));
  }
  *to = total;
}

inline __host__ __device__ int64_t cell_weight_chunks(int64_t channels) {
  return (channels * channels * 9 + kCellThreads - 1) / kCellThreads;
}

// The last launch: blocks for the input, then blocks for weights.
template <class Stored>
__global__ void __launch_bounds__(kCellThreads, 1)
    cell_backward_last_general(const __grid_constant__ CellLaunch<Stored> l) {
  wait_for_previous();
  if (blockIdx.x == 0) cell_write_rows(l);
  const int64_t inputs = l.blocks * (l.p.shared ? 1 : l.count);
  if (blockIdx.x < inputs) {
    const int slot = static_cast<int>(blockIdx.x / l.blocks);
    cell_input_gradient(l, blockIdx.x % l.blocks, slot, l.p.shared ? l.count : slot + 1);
  } else {
    const int64_t chunks = cell_weight_chunks(l.p.channels), own = blockIdx.x - inputs;
    const CellJob job = cell_job(l, static_cast<int>(own / chunks));
    if (job.count == 0 || job.first != job.architecture) return;
    cell_weight_gradients(l, job, own % chunks * kCellThreads + threadIdx.x);
  }
}

}  // namespace cwkernels
