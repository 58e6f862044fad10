#pragma once
#include "bottleneck_general.cuh"

// Backward kernels of inverted_bottleneck for every shape and for double. A batch norm's gradient
// needs two sums over all pixels, of the gradient and of that times (raw - mean): each kernel
// leaves those of the batch norm before it, and turns gradients by those of the one behind it as it
// loads.
namespace cwkernels {

// The sums over the gradients that a thread gives to one channel.
template <class T>
struct GeneralSums {
  Sums<T> own = Sums<T>::nothing();

  __device__ void add(T gradient, T apart) {
    own.first += gradient;
    own.second += gradient * apart;
  }
  // By all threads of the block, once.
  template <class Stored>
  __device__ void leave(const BottleneckShare<Stored>& share, const GeneralShared<T>& shared) {
    const Sums<T> all =
        merge_rows(own, reinterpret_cast<Sums<T>*>(shared.moments), kGeneralRows, kWarp);
    share.template leave<Sums<T>>(shared.last, [&](int64_t) { return all; });
  }
};

// The sums of the last batch norm, from the output's gradient. Grid: (shares, 1, architectures).
template <class Stored>
__global__ void __launch_bounds__(kGeneralThreads, 1)
    bottleneck_output_sums(const __grid_constant__ BottleneckLaunch launch) {
  using T = Computed<Stored>;
  wait_for_previous();
  const BottleneckChoice<Stored> choice(launch, blockIdx.z);
  const BottleneckShare<Stored> share(choice, 2, kGeneralTile);
  if (!share.works()) return;
  const GeneralShared<T> shared;
  const int64_t channels = choice.p.output_channels, channel = share.first_channel() + lane();
  GeneralSums<T> sums;
  if (channel < channels) {
    const Stored* gradient = choice.grad_output();
    const Stored* raw = choice.projected();
    const T mean = choice.mean(2)[channel];
    const Range tiles = general_tiles(share);
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      each_pixel({t * kGeneralTile, choice.output_pixels}, [&](int64_t pixel, int) {
        const int64_t at = pixel * channels + channel;
        sums.add(load_stored(gradient + at), load_stored(raw + at) - mean);
      });
    }
  }
  allow_next();
  sums.leave(share, shared);
}

// The gradient of one value before the rectifier of place 0 or 1, stored and summed.
template <class Stored>
struct GeneralRectified {
  using T = Computed<Stored>;

  const Stored* raw;
  Stored* gradient;
  Norm<T> norm;
  int64_t channels, channel;
  GeneralSums<T> sums;

  __device__ GeneralRectified(const BottleneckChoice<Stored>& choice, int place, int64_t of)
      : raw(choice.raw(place)),
        gradient(choice.hidden_gradient(place)),
        norm(choice.norm(place, of)),
        channels(choice.hidden),
        channel(of) {}

  __device__ void store(int64_t pixel, T value) {
    const int64_t at = pixel * channels + channel;
    const T own = load_stored(raw + at), through = norm(own) > T(0) ? value : T(0);
    store_stored(gradient + at, through);
    sums.add(through, own - norm.mean);
  }
};

// From the output's gradient through the project convolution, to the gradient before the second
// rectifier. Grid: (shares, 1, architectures).
template <class Stored>
__global__ void __launch_bounds__(kGeneralThreads, 1)
    bottleneck_project_gradient_general(const __grid_constant__ BottleneckLaunch launch) {
  using T = Computed<Stored>;
  wait_for_previous();
  const BottleneckChoice<Stored> choice(launch, blockIdx.z);
  const BottleneckShare<Stored> share(choice, 1, kGeneralTile);
  if (!share.works()) return;
  const GeneralShared<T> shared;
  const int64_t channels = choice.hidden;
  const int64_t first = share.first_channel(), channel = first + lane();
  const T* weight = choice.weight(2);
  const auto weights = [=](int64_t j) {
    return [=](int64_t d) { return weight[d * channels + j]; };
  };
  const auto source = choice.raw_gradient(2);
  GeneralRectified<Stored> to(choice, 1, channel < channels ? channel : first);
  const Range tiles = general_tiles(share);
  for (int64_t t = tiles.begin; t < tiles.end; ++t) {
    const Range pixels{t * kGeneralTile, choice.output_pixels};
    T sums[kGeneralValues];
    multiply_general<false, true>(source, weights, pixels, {first, channels},
                                  {0, choice.p.output_channels}, shared, sums);
    if (channel >= channels) continue;
    each_pixel(pixels, [&](int64_t pixel, int v) { to.store(pixel, sums[v]); });
  }
  allow_next();
  to.sums.leave(share, shared);
}

// The sum over the taps by which an input pixel was read.
template <class T, class Stored, class Column>
__device__ T spread_pixel(const BottleneckChoice<Stored>& choice, const T* taps,
                          const Column& column, int64_t pixel) {
  const int64_t size = choice.kernel_size, stride = choice.p.stride;
  const int64_t image = pixel / (choice.p.width * choice.p.height);
  const int64_t bottom = pixel / choice.p.width % choice.p.height + size / 2;
  const int64_t right = pixel % choice.p.width + size / 2;
  T sum = T(0);
  for (int64_t r = 0; r < size; ++r) {
    for (int64_t s = 0; s < size; ++s) {
      if (bottom < r || right < s || (bottom - r) % stride || (right - s) % stride) continue;
      const int64_t y = (bottom - r) / stride, x = (right - s) / stride;
      if (y >= choice.output_height || x >= choice.output_width) continue;
      const int64_t at = (image * choice.output_height + y) * choice.output_width + x;
      sum += taps[r * size + s] * column(at);
    }
  }
  return sum;
}

// Through the depthwise convolution, to the gradient before the first rectifier. Grid: (shares, 1,
// architectures).
template <class Stored>
__global__ void __launch_bounds__(kGeneralThreads, 1)
    bottleneck_depthwise_gradient_general(const __grid_constant__ BottleneckLaunch launch) {
  using T = Computed<Stored>;
  wait_for_previous();
  const BottleneckChoice<Stored> choice(launch, blockIdx.z);
  const BottleneckShare<Stored> share(choice, 0, kGeneralTile);
  if (!share.works()) return;
  const GeneralShared<T> shared;
  const int64_t channel = share.first_channel() + lane();
  const bool live = channel < choice.hidden;
  GeneralRectified<Stored> to(choice, 0, live ? channel : 0);
  if (live) {
    const auto column = choice.raw_gradient(1)(channel);
    const T* taps = choice.weight(1) + channel * choice.depth(1);
    const Range tiles = general_tiles(share);
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      each_pixel({t * kGeneralTile, choice.input_pixels}, [&](int64_t pixel, int) {
        to.store(pixel, spread_pixel(choice, taps, column, pixel));
      });
    }
  }
  allow_next();
  to.sums.leave(share, shared);
}

// The gradient of a tile of input pixels by one architecture, added to that of those before it
// where all share the images.
template <class T, class Stored>
__device__ void input_gradient_tile(const BottleneckChoice<Stored>& choice, Range pixels,
                                    int64_t first, const GeneralShared<T>& shared) {
  const int64_t channels = choice.p.input_channels, channel = first + lane();
  T sums[kGeneralValues] = {};
  if (choice.runs(2)) {
    const int place = choice.code > 0 ? 0 : 2;
    const T* weight = choice.weight(place);
    const auto weights = [=](int64_t j) {
      return [=](int64_t d) { return weight[d * channels + j]; };
    };
    const auto source = choice.raw_gradient(place);
    const auto strided = [&](int64_t d) {
      const auto column = source(d);
      return [=, &choice](int64_t pixel) {
        const int64_t from = choice.reading_pixel(pixel);
        return from < 0 ? T(0) : column(from);
      };
    };
    const Range columns{first, channels}, depth{0, choice.channels(place)};
    if (place == 0) {
      multiply_general<false, true>(source, weights, pixels, columns, depth, shared, sums);
    } else {
      multiply_general<false, true>(strided, weights, pixels, columns, depth, shared, sums);
    }
  }
  if (channel >= channels) return;
  const bool through = choice.passes_input();
  const bool add = choice.index > 0 && choice.p.input_architecture_stride == 0;
  each_pixel(pixels, [&](int64_t pixel, int v) {
    const int64_t at = pixel * channels + channel;
    const T own = through ? sums[v] + load_stored(choice.grad_output() + at) : sums[v];
    Stored* to = choice.grad_input() + at;
    store_stored(to, add ? load_stored(to) + own : own);
  });
}

// Through the expand convolution or an identity to the gradient of the images. Grid: (blocks, runs
// of input channels, architectures), or 1 for all architectures that share the images, one after
// another by the same thread.
template <class Stored>
__global__ void __launch_bounds__(kGeneralThreads, 1)
    bottleneck_input_gradient_general(const __grid_constant__ BottleneckLaunch launch) {
  using T = Computed<Stored>;
  wait_for_previous();
  allow_next();
  const GeneralShared<T> shared;
  const int64_t first_channel = static_cast<int64_t>(blockIdx.y) * kGeneralTile;
  const int each = launch.call.input_architecture_stride == 0 ? launch.count : 1;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kGeneralTile;
  for (int a = 0; a < each; ++a) {
    const BottleneckChoice<Stored> choice(launch, static_cast<int64_t>(blockIdx.z) * each + a);
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * kGeneralTile;
         first < choice.input_pixels; first += step) {
      input_gradient_tile(choice, {first, choice.input_pixels}, first_channel, shared);
    }
  }
}

// --- Weights -------------------------------------------------------------------------------------

// A tile of a pointwise convolution's weights: channels that it gives x channels that it reads.
template <class T, class Stored, class Source>
__device__ void pointwise_weight_tile(const BottleneckChoice<Stored>& choice, int place,
                                      const Source& source, Range rows, Range columns, Range pixels,
                                      T* to) {
  const GeneralShared<T> shared;
  T sums[kGeneralValues];
  multiply_general<true, true>(choice.raw_gradient(place), source, rows, columns, pixels, shared,
                               sums);
  const int64_t column = columns.begin + lane();
  if (column >= columns.end) return;
  each_pixel(rows, [&](int64_t row, int v) { to[row * columns.end + column] = sums[v]; });
}

// The taps of 32 channels, a warp each for one tap after another.
template <class T, class Stored>
__device__ void depthwise_weight_tile(const BottleneckChoice<Stored>& choice, Range channels,
                                      Range pixels, T* to) {
  const int64_t channel = channels.begin + lane(), size = choice.kernel_size;
  if (channel >= channels.end) return;
  const auto gradient = choice.raw_gradient(1)(channel);
  const auto column = choice.activated(0)(channel);
  for (int64_t tap = threadIdx.x / kWarp; tap < size * size; tap += kGeneralRows) {
    T sum = T(0);
    for (int64_t pixel = pixels.begin; pixel < pixels.end; ++pixel) {
      const int64_t image = pixel / (choice.output_width * choice.output_height);
      const int64_t y = pixel / choice.output_width % choice.output_height * choice.p.stride +
                        tap / size - size / 2;
      const int64_t x = pixel % choice.output_width * choice.p.stride + tap % size - size / 2;
      if (y < 0 || y >= choice.p.height || x < 0 || x >= choice.p.width) continue;
      sum += gradient(pixel) * column((image * choice.p.height + y) * choice.p.width + x);
    }
    to[channel * size * size + tap] = sum;
  }
}

// Partial gradients of all weights. Grid: (tiles x parts, places, architectures).
template <class Stored>
__global__ void __launch_bounds__(kGeneralThreads, 1)
    bottleneck_weight_gradients_general(const __grid_constant__ BottleneckLaunch launch) {
  using T = Computed<Stored>;
  wait_for_previous();
  allow_next();
  const BottleneckChoice<Stored> choice(launch, blockIdx.z);
  const int place = static_cast<int>(blockIdx.y);
  if (!choice.runs(place)) return;
  const int64_t across = place == 1 ? 1 : ceil_div(choice.depth(place), kGeneralTile);
  const int64_t tiles = across * ceil_div(choice.channels(place), kGeneralTile);
  const int64_t tile = blockIdx.x % tiles, part = blockIdx.x / tiles;
  const int64_t parts = choice.weight_parts(place), pixels = choice.pixels(place);
  if (part >= parts) return;
  const Range own{pixels * part / parts, pixels * (part + 1) / parts};
  const Range rows{tile / across * kGeneralTile, choice.channels(place)};
  const Range columns{tile % across * kGeneralTile, choice.depth(place)};
  T* to = choice.weight_partial(place, part);
  const Stored* input = choice.input();
  const int64_t pitch = choice.p.input_channels;
  if (place == 1) {
    depthwise_weight_tile(choice, rows, own, to);
  } else if (place == 2 && choice.code > 0) {
    pointwise_weight_tile(choice, place, choice.activated(1), rows, columns, own, to);
  } else {
    const bool strided = place == 2;
    const auto source = [=, &choice](int64_t channel) {
      return [=, &choice](int64_t pixel) {
        const int64_t from = strided ? choice.strided_pixel(pixel) : pixel;
        return load_stored(input + from * pitch + channel);
      };
    };
    pointwise_weight_tile(choice, place, source, rows, columns, own, to);
  }
}

// Where the gradients of an architecture's rows go, which no architecture of the group before it
// reads.
struct BottleneckSlot {
  int64_t first;  // the architecture, of the group
  int64_t slot;
  bool again;  // a group before this one began its sums

  __device__ BottleneckSlot(const BottleneckLaunch& launch, int64_t architecture)
      : first(architecture) {
    const BottleneckPick own = pick_of(launch, architecture);
    slot = own.slot;
    again = own.again;
    if (!launch.call.chosen) return;
    for (int64_t before = -launch.first; before < 0 && !again; ++before) {
      if (!pick_of(launch, before).repeats(own)) continue;
      slot = launch.first + before;
      again = true;
    }
  }
};

// total(a) added to *to for each architecture a of the group with the row of the first, in order.
template <class T, class F>
__device__ void add_in_order(const BottleneckLaunch& launch, const BottleneckSlot& slot, T* to,
                             const F& total) {
  const BottleneckPick own = pick_of(launch, slot.first);
  bool add = slot.again;
  T sum = add ? *to : T(0);
  for (int64_t a = slot.first; a < launch.count; ++a) {
    if (!pick_of(launch, a).repeats(own)) continue;
    sum = add ? sum + total(a) : total(a);
    add = true;
  }
  *to = sum;
}

// By call.chosen: what an architecture's slot has of each bank, `live` unless another slot has it.
template <class T>
__device__ void write_rows(const BottleneckChoice<T>& choice, bool live) {
  const int banks = kBottleneckProjection + !choice.passes_input();
  const int bank = static_cast<int>(threadIdx.x);
  if (bank >= banks) return;
  const bool reads = choice.code > 0 ? bank / 3 == choice.code - 1
                                     : bank == kBottleneckProjection && choice.runs(2);
  choice.p.grad_rows[bank * choice.p.architectures + choice.index] =
      live && reads ? choice.row : -1;
}

// The gradients of all banks: parts of an architecture in order, then architectures in order. Grid:
// (elements, places, architectures); the first of those with one row works for all of them.
template <class T>
__global__ void __launch_bounds__(kGeneralThreads, 1)
    bottleneck_bank_gradients(const __grid_constant__ BottleneckLaunch launch) {
  wait_for_previous();
  allow_next();
  const BottleneckSlot slot(launch, blockIdx.z);
  const BottleneckPick own = pick_of(launch, slot.first);
  bool repeated = false;
  for (int64_t a = 0; a < slot.first; ++a) repeated |= own.repeats(pick_of(launch, a));
  const BottleneckChoice<T> choice(launch, own, slot.first);
  const int place = static_cast<int>(blockIdx.y);
  if (launch.call.chosen && blockIdx.x == 0 && place == 0) {
    write_rows(choice, !repeated && !slot.again);
  }
  if (repeated || !choice.runs(place)) return;
  const int64_t bank = choice.bank(place), at = slot.slot * choice.weight_size(place);
  const int64_t element = static_cast<int64_t>(blockIdx.x) * kGeneralThreads + threadIdx.x;
  if (launch.call.grad_weights[bank] && element < choice.weight_size(place)) {
    const int64_t parts = choice.weight_parts(place);
    add_in_order(launch, slot, static_cast<T*>(launch.call.grad_weights[bank]) + at + element,
                 [&](int64_t a) {
                   const BottleneckChoice<T> other(launch, a);
                   T sum = T(0);
                   for (int64_t part = 0; part < parts; ++part) {
                     sum += other.weight_partial(place, part)[element];
                   }
                   return sum;
                 });
  }
  if (element >= choice.channels(place)) return;
  const int64_t channel = slot.slot * choice.channels(place) + element;
  add_in_order(launch, slot, static_cast<T*>(launch.call.grad_scales[bank]) + channel,
               [&](int64_t a) {
                 const BottleneckChoice<T> other(launch, a);
                 return other.norm_channels(place).gamma_gradient(
                     element, other.template sum<Sums<T>>(place, element));
               });
  add_in_order(launch, slot, static_cast<T*>(launch.call.grad_shifts[bank]) + channel,
               [&](int64_t a) {
                 const BottleneckChoice<T> other(launch, a);
                 return other.template sum<Sums<T>>(place, element).first;
               });
}

}  // namespace cwkernels
