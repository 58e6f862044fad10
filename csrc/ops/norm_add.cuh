#pragma once
#include "../parts/by_dtype.cuh"
#include "../parts/lanes.cuh"
#include "../parts/normalize.cuh"
#include "norm_add.h"

// A pass is bound by memory: forward reads one or two tensors and writes one, backward reads two or
// three twice and writes one or two. So every access is of 16 bytes and a warp's are neighbours. Of
// registers ptxas gives forward 46 a thread at most, the sums 78 and the gradients 80: at least
// three blocks of 256 threads on a processor, which have 12 KB of each tensor under way; on the 132
// of an H100 that is 1.6 MB, what 3 TB/s take in 0.5 µs, the latency.
namespace cwkernels {

constexpr int kNormAddThreads = 256;
static_assert(65536 / (80 * kNormAddThreads) == 3 && 3 * kNormAddThreads * 16 == 12 * 1024);
constexpr int kNormAddMostColumns = 32;
// Pixels that a thread is worth starting for: it begins by making coefficients.
constexpr int64_t kNormAddPixels = 4;

// How a launch shares out the work. A block has `rows` rows of `columns` threads, both powers of
// two. A thread keeps to kLanes channels, so that their coefficients stay in registers, and goes
// from pixel to pixel; a run of columns * kLanes channels is a chunk. One dimension of the grid, so
// that no limit but 2^31 blocks: blocks of a chunk, then chunks, then architectures.
template <class Stored, int kLanes>
struct NormAddLaunch {
  using T = Computed<Stored>;
  NormAddParams p;
  int columns, rows;
  int64_t chunks, blocks, pixels;
  bool grad_is_dense;
  Partials<Sums<T>> partials;  // a slot for each chunk of each architecture

  __device__ Channels<T> channels(int64_t a) const {
    const T* mean = static_cast<const T*>(p.statistics) + a * 2 * p.channels;
    return {mean, mean + p.channels, static_cast<const T*>(p.scale), static_cast<const T*>(p.shift),
            static_cast<T>(p.eps)};
  }
  CudaScratch scratch() const {
    return partials.blocks == 0 ? CudaScratch{} : partials.scratch(p.architectures * chunks);
  }
};

// Where a thread is.
template <int kLanes>
struct NormAddPlace {
  int64_t architecture, chunk, block;
  int64_t pixel, step;  // its first, and how far to the next
  int64_t channel;      // its first
  bool live;            // whether there is such a channel

  template <class Stored>
  __device__ explicit NormAddPlace(const NormAddLaunch<Stored, kLanes>& l) {
    const int64_t slot = blockIdx.x / l.blocks;
    architecture = slot / l.chunks;
    chunk = slot % l.chunks;
    block = blockIdx.x % l.blocks;
    const int thread = static_cast<int>(threadIdx.x);
    pixel = block * l.rows + thread / l.columns;
    step = l.blocks * l.rows;
    channel = (chunk * l.columns + thread % l.columns) * kLanes;
    live = channel < l.p.channels;
  }

  template <class Stored>
  __device__ int64_t offset(const NormAddLaunch<Stored, kLanes>& l, int64_t pixel) const {
    return (architecture * l.pixels + pixel) * l.p.channels + channel;
  }
};

// Numbers of pixels mostly have 32 bits, and dividing 64 takes three times as long.
__device__ __forceinline__ int64_t divide(int64_t a, int64_t b) {
  if ((a | b) >> 32) return a / b;
  return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
}

template <class Stored, int kLanes>
__global__ void __launch_bounds__(kNormAddThreads)
    norm_add_forward(NormAddLaunch<Stored, kLanes> l) {
  using T = Computed<Stored>;
  wait_for_previous();
  allow_next();
  const NormAddPlace<kLanes> at(l);
  if (!at.live) return;
  const Channels<T> channels = l.channels(at.architecture);
  Norm<T> norm[kLanes];
#pragma unroll
  for (int i = 0; i < kLanes; ++i) norm[i] = channels.norm(at.channel + i);
  const Stored* __restrict__ input = static_cast<const Stored*>(l.p.input);
  const Stored* __restrict__ shortcut = static_cast<const Stored*>(l.p.shortcut);
  Stored* __restrict__ output = static_cast<Stored*>(l.p.output);
  for (int64_t pixel = at.pixel; pixel < l.pixels; pixel += at.step) {
    const int64_t offset = at.offset(l, pixel);
    Lanes<T, kLanes> value = load_lanes<kLanes>(input + offset), added{};
    if (shortcut) added = load_lanes<kLanes>(shortcut + offset);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      value[i] = norm[i](value[i]);
      if (shortcut) value[i] += added[i];
      if (l.p.relu) value[i] = rectify(value[i]);
    }
    store_lanes(output + offset, value);
  }
}

// The raw values of a pixel and the gradient of what was rectified.
template <class Stored, int kLanes>
struct NormAddGradient {
  using T = Computed<Stored>;
  Lanes<T, kLanes> raw, passed;

  __device__ __forceinline__ NormAddGradient(const NormAddLaunch<Stored, kLanes>& l,
                                             const NormAddPlace<kLanes>& at, int64_t pixel,
                                             const Norm<T> (&norm)[kLanes]) {
    const int64_t offset = at.offset(l, pixel);
    raw = load_lanes<kLanes>(static_cast<const Stored*>(l.p.input) + offset);
    passed = load_lanes<kLanes>(static_cast<const Stored*>(l.p.grad_output) +
                                (l.grad_is_dense ? offset : strided(l.p, at, pixel)));
    if (!l.p.relu) return;
    const Stored* saved = static_cast<const Stored*>(l.p.saved_output);
    Lanes<T, kLanes> rectified = raw;
    if (saved) rectified = load_lanes<kLanes>(saved + offset);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      if (!((saved ? rectified[i] : norm[i](raw[i])) > T(0))) passed[i] = T(0);
    }
  }

  __device__ static int64_t strided(const NormAddParams& p, const NormAddPlace<kLanes>& at,
                                    int64_t pixel) {
    const PixelStrides& s = p.grad_strides;
    const int64_t line = divide(pixel, p.width), image = divide(line, p.height);
    return at.architecture * s.architecture + image * s.image + (line - image * p.height) * s.row +
           (pixel - line * p.width) * s.column + at.channel;
  }
};

// The sums of a batch norm's backward pass, of the gradient and of the gradient times (raw - mean).
// Persistent blocks, two a processor: a thread sums its pixels one after the other, four of them
// under way, a block adds up its rows as a tree through 8 bytes of shared memory a thread and lane
// (8 KB).
template <class Stored, int kLanes>
__global__ void __launch_bounds__(kNormAddThreads) norm_add_sums(NormAddLaunch<Stored, kLanes> l) {
  using T = Computed<Stored>;
  wait_for_previous();
  allow_next();
  Shared shared;
  int* last = shared.take<int>(1);
  Sums<T>* values = shared.take<Sums<T>>(kNormAddThreads * kLanes);
  const NormAddPlace<kLanes> at(l);
  const int64_t slot = at.architecture * l.chunks + at.chunk;
  Norm<T> norm[kLanes];
  Sums<T> sums[kLanes];
#pragma unroll
  for (int i = 0; i < kLanes; ++i) sums[i] = Sums<T>::nothing();
  if (at.live) {
    const Channels<T> channels = l.channels(at.architecture);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) norm[i] = channels.norm(at.channel + i);
#pragma unroll 4
    for (int64_t pixel = at.pixel; pixel < l.pixels; pixel += at.step) {
      const NormAddGradient<Stored, kLanes> gradient(l, at, pixel, norm);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        const T grad = gradient.passed[i];
        sums[i] = sums[i].merged({grad, grad * (gradient.raw[i] - norm[i].mean)});
      }
    }
  }
  // Row 0 leaves the lanes of its columns as the first channels of `values`.
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    Sums<T>* own = values + i * kNormAddThreads;
    const Sums<T> total = merge_rows(sums[i], own, l.rows, l.columns);
    if (static_cast<int>(threadIdx.x) < l.columns) own[threadIdx.x] = total;
  }
  sync_block();
  leave_partial(l.partials, slot, at.block, last,
                [&](int64_t c) { return values[c % kLanes * kNormAddThreads + c / kLanes]; });
}

// The gradients of the affine map, added up over the architectures in order, by the one block of a
// chunk that is the first of the first architecture.
template <class Stored, int kLanes>
__device__ void norm_add_affine(const NormAddLaunch<Stored, kLanes>& l, int64_t chunk,
                                int64_t first, int64_t count) {
  using T = Computed<Stored>;
  for (int64_t c = threadIdx.x; c < count; c += kNormAddThreads) {
    T scale = T(0), shift = T(0);
    for (int64_t a = 0; a < l.p.architectures; ++a) {
      const Sums<T> sums = l.partials.sum(a * l.chunks + chunk, c);
      const Channels<T> channels = l.channels(a);
      const T own = channels.gamma_gradient(first + c, sums);
      scale = a == 0 ? own : scale + own;
      shift = a == 0 ? channels.beta_gradient(sums) : shift + channels.beta_gradient(sums);
    }
    static_cast<T*>(l.p.grad_scale)[first + c] = scale;
    static_cast<T*>(l.p.grad_shift)[first + c] = shift;
  }
}

// The gradients of input and shortcut. A block first merges its chunk's groups of partial sums, at
// most 17 x 8 bytes a channel out of L2, and makes each channel's coefficients once, 16 bytes a
// channel of shared memory (2 KB at most); it has at least kNormAddPixels x 4 x 16 bytes of tensors
// a thread to make up for that, 64 KB a block.
template <class Stored, int kLanes>
__global__ void __launch_bounds__(kNormAddThreads)
    norm_add_gradients(NormAddLaunch<Stored, kLanes> l) {
  using T = Computed<Stored>;
  wait_for_previous();
  allow_next();
  Shared shared;
  NormBackward<T>* coefficients =
      shared.take<NormBackward<T>>(static_cast<size_t>(l.columns * kLanes));
  const NormAddPlace<kLanes> at(l);
  const Channels<T> channels = l.channels(at.architecture);
  const int64_t width = l.columns * kLanes, first = at.chunk * width;
  const int64_t count = l.p.channels - first < width ? l.p.channels - first : width;
  for (int64_t c = threadIdx.x; c < count; c += kNormAddThreads) {
    Sums<T> sums = Sums<T>::nothing();
    if (l.p.training) sums = l.partials.sum(at.architecture * l.chunks + at.chunk, c);
    coefficients[c] = channels.backward(first + c, sums, static_cast<T>(l.pixels), l.p.training);
  }
  if (l.p.grad_scale && at.architecture == 0 && at.block == 0) {
    norm_add_affine(l, at.chunk, first, count);
  }
  sync_block();
  if (!at.live) return;
  Norm<T> norm[kLanes];
  NormBackward<T> backward[kLanes];
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    norm[i] = channels.norm(at.channel + i);
    backward[i] = coefficients[at.channel - first + i];
  }
  Stored* __restrict__ grad_input = static_cast<Stored*>(l.p.grad_input);
  Stored* __restrict__ grad_shortcut = static_cast<Stored*>(l.p.grad_shortcut);
  for (int64_t pixel = at.pixel; pixel < l.pixels; pixel += at.step) {
    const NormAddGradient<Stored, kLanes> gradient(l, at, pixel, norm);
    Lanes<T, kLanes> result;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) result[i] = backward[i](gradient.passed[i], gradient.raw[i]);
    const int64_t offset = at.offset(l, pixel);
    store_lanes(grad_input + offset, result);
    if (grad_shortcut) store_lanes(grad_shortcut + offset, gradient.passed);
  }
}

// --- Host ----------------------------------------------------------------------------------------

inline bool grad_is_dense(const NormAddParams& p) {
  const PixelStrides& s = p.grad_strides;
  const int64_t pixels = p.images * p.height * p.width;
  return (s.column == p.channels || p.width == 1) &&
         (s.row == p.width * p.channels || p.height == 1) &&
         (s.image == p.height * p.width * p.channels || p.images == 1) &&
         (s.architecture == pixels * p.channels || p.architectures == 1);
}

// Whether every pixel of every tensor may be moved in wide lanes.
template <class Stored>
bool norm_add_is_wide(const NormAddParams& p) {
  const PixelStrides& s = p.grad_strides;
  for (const int64_t stride : {p.channels, s.architecture, s.image, s.row, s.column}) {
    if (stride % kWideLanes<Stored> != 0) return false;
  }
  for (const void* data :
       {p.input, p.shortcut, static_cast<const void*>(p.output), p.grad_output, p.saved_output,
        static_cast<const void*>(p.grad_input), static_cast<const void*>(p.grad_shortcut)}) {
    if (!starts_wide(data)) return false;
  }
  return true;
}

// Whether the backward pass needs the sums of the gradients.
inline bool norm_add_is_summed(const NormAddParams& p) {
  return p.pass == NormAddPass::backward && (p.training || p.scale != nullptr);
}

template <class Stored, int kLanes>
NormAddLaunch<Stored, kLanes> norm_add_plan(const NormAddParams& p) {
  NormAddLaunch<Stored, kLanes> l{};
  l.p = p;
  l.pixels = p.images * p.height * p.width;
  l.grad_is_dense = p.pass == NormAddPass::forward || grad_is_dense(p);
  const int64_t wanted = (p.channels + kLanes - 1) / kLanes;
  l.columns = 1;
  while (l.columns < kNormAddMostColumns && l.columns < wanted) l.columns *= 2;
  l.rows = kNormAddThreads / l.columns;
  l.chunks = (wanted + l.columns - 1) / l.columns;
  const int64_t pixels_per_block = l.rows * kNormAddPixels;
  l.blocks = (l.pixels + pixels_per_block - 1) / pixels_per_block;
  if (!norm_add_is_summed(p)) return l;
  l.partials.blocks = sum_blocks(current_device().processors, l.chunks, l.blocks);
  l.partials.width = l.columns * kLanes;
  l.partials.values = static_cast<Sums<Computed<Stored>>*>(p.workspace);
  l.partials.tickets = p.tickets;
  return l;
}

// f(plan) for the launches of these params, whatever they are of.
template <class F>
auto with_norm_add_plan(const NormAddParams& p, const F& f) {
  return with_stored(p, [&](auto of) {
    using Stored = typename decltype(of)::Type;
    return norm_add_is_wide<Stored>(p) ? f(norm_add_plan<Stored, kWideLanes<Stored>>(p))
                                       : f(norm_add_plan<Stored, 1>(p));
  });
}

template <class Stored, int kLanes>
int launch_norm_add(const NormAddLaunch<Stored, kLanes>& l, void* stream) {
  using T = Computed<Stored>;
  const int64_t slots = l.p.architectures * l.chunks;
  const Grid grid{slots * l.blocks};
  if (l.p.pass == NormAddPass::forward) {
    return launch(norm_add_forward<Stored, kLanes>, grid, kNormAddThreads, 0, stream, l);
  }
  if (norm_add_is_summed(l.p)) {
    NormAddLaunch<Stored, kLanes> sums = l;
    sums.blocks = l.partials.blocks;
    const size_t shared = shared_bytes<int>(1) + shared_bytes<Sums<T>>(kNormAddThreads * kLanes);
    const int error = launch(norm_add_sums<Stored, kLanes>, {slots * sums.blocks}, kNormAddThreads,
                             shared, stream, sums);
    if (error != 0) return error;
  }
  const size_t shared = shared_bytes<NormBackward<T>>(static_cast<size_t>(l.columns * kLanes));
  return launch(norm_add_gradients<Stored, kLanes>, grid, kNormAddThreads, shared, stream, l);
}

}  // namespace cwkernels
