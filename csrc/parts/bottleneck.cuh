#pragma once
#include "../ops/inverted_bottleneck.h"
#include "lanes.cuh"
#include "normalize.cuh"
#include "portable.cuh"
#include "reduce.cuh"

// What the kernels of inverted_bottleneck share: a group of architectures that is launched
// together, and what one of them runs. Convolutions are counted by place: 0 expand, 1 depthwise,
// 2 project; an identity's projection is at place 2 too.
namespace cwkernels {

// Architectures whose choices fit into a kernel's params, beside the rest of BottleneckLaunch.
constexpr int kBottleneckGroup = 32;

// What an architecture chose.
struct BottleneckPick {
  int64_t row;   // -1: no bank is read, as what was chosen on the device does not exist
  int64_t slot;  // of its row, among the distinct ones of its banks
  int64_t kept;  // elements of `kept` before its own
  int32_t code;
  bool again;  // a group before this one read the same row of the same banks

  // Whether both read the same row of the same banks, if they read any.
  __host__ __device__ bool repeats(const BottleneckPick& other) const {
    return code == other.code && row == other.row;
  }
};

// How the depthwise convolution's outputs are cut into tiles: `rows` x `columns` pixels of `images`
// images, and what a tile reads of each.
struct DepthwiseTiles {
  int images, rows, columns;
  int source_rows, source_columns;
  int across, down;  // tiles of an image
  int64_t count;
};

// A group. `call.selection` and `call.slots` are the host's and not read on the device.
struct BottleneckLaunch {
  InvertedBottleneckParams call;
  BottleneckPick picks[kBottleneckGroup];  // not read where call.chosen says what they are
  int64_t first;                           // of the group, among all architectures of the call
  int count;
  // By code and place: blocks that share the pixels of a run of channels, and ranges of pixels
  // whose gradients of the weights are apart.
  int32_t blocks[kBottleneckCodes][3];
  int32_t weight_parts[kBottleneckCodes][3];
  int64_t most_kept;  // by call.chosen: elements of `kept` of each architecture
  bool measure;       // statistics come from partial results, which this call's kernels leave
  // Scratch, the group's architectures one behind the other.
  void* expanded;           // [count][N H W, E], null: in `kept`
  void* filtered;           // [count][N H' W', E], null: in `kept`
  void* expanded_gradient;  // [count][N H W, E]: of the first batch norm's result, rectified
  void* filtered_gradient;  // [count][N H' W', E]: of the second's
  void* partials;           // [count][3], partial_bytes each: Moments forward, Sums backward
  unsigned* tickets;        // [count][3][partial_tickets], zeros
  void* weight_partials;    // [count][3][weight_elements]
  int64_t partial_bytes, partial_tickets, weight_elements;
  int run[3];                    // by place: channels whose sums over pixels are those of one block
  int64_t input_gradient_depth;  // most channels of what the images' gradient is made of
  DepthwiseTiles filter_tiles[2];    // of each candidate: of its outputs, and of its inputs, whose
  DepthwiseTiles gradient_tiles[2];  // gradients they are
};
static_assert(sizeof(BottleneckLaunch) <= 4096, "the most that a kernel takes by value");

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What an architecture of the group chose: the only place where a block reads it.
__device__ inline BottleneckPick pick_of(const BottleneckLaunch& launch, int64_t architecture) {
  const InvertedBottleneckParams& p = launch.call;
  if (!p.chosen) return launch.picks[architecture];
  const int64_t index = launch.first + architecture;
  const int32_t code = load_global(p.chosen + 2 * index);
  const int32_t row = load_global(p.chosen + 2 * index + 1);
  const bool exists = code >= 0 && code < kBottleneckCodes && row >= 0 && row < p.sets;
  return {exists ? row : -1, index, index * launch.most_kept, exists ? code : 0, false};
}

// What one architecture runs. Images, what is kept, and their gradients lie as Stored; weights,
// statistics and all sums are of what these are computed in.
template <class Stored>
struct BottleneckChoice {
  using T = Computed<Stored>;

  const BottleneckLaunch& launch;
  const InvertedBottleneckParams& p;
  int64_t place_in_group;
  int64_t code, row, kept_before, index;
  int64_t hidden, kernel_size;
  int64_t output_height, output_width, input_pixels, output_pixels;

  __device__ BottleneckChoice(const BottleneckLaunch& of, int64_t architecture)
      : BottleneckChoice(of, pick_of(of, architecture), architecture) {}
  __host__ __device__ BottleneckChoice(const BottleneckLaunch& of, const BottleneckPick& pick,
                                       int64_t architecture)
      : launch(of),
        p(of.call),
        place_in_group(architecture),
        code(pick.code),
        row(pick.row),
        kept_before(pick.kept),
        index(of.first + architecture),
        hidden(code > 0 ? p.hidden_channels[code > 1] : 0),
        kernel_size(code > 0 ? p.kernel_size[code > 1] : 0),
        output_height((p.height - 1) / p.stride + 1),
        output_width((p.width - 1) / p.stride + 1),
        input_pixels(p.images * p.height * p.width),
        output_pixels(p.images * output_height * output_width) {}

  __host__ __device__ bool projects_input() const {
    return code == 0 && row >= 0 && p.weights[kBottleneckProjection];
  }
  __host__ __device__ bool runs(int place) const {
    return code > 0 || (place == 2 && projects_input());
  }
  // Whether the input is part of the output: as a residual, or as all of it.
  __host__ __device__ bool passes_input() const { return !p.weights[kBottleneckProjection]; }
  __host__ __device__ int64_t bank(int place) const {
    return code > 0 ? 3 * (code - 1) + place : int64_t{kBottleneckProjection};
  }
  __host__ __device__ int64_t channels(int place) const {
    return place < 2 ? hidden : p.output_channels;
  }
  __host__ __device__ int64_t pixels(int place) const {
    return place == 0 ? input_pixels : output_pixels;
  }
  // Channels that one output of a place sums over, or taps of the depthwise convolution.
  __host__ __device__ int64_t depth(int place) const {
    if (code == 0 || place == 0) return p.input_channels;
    return place == 1 ? kernel_size * kernel_size : hidden;
  }
  __host__ __device__ int64_t weight_size(int place) const {
    return channels(place) * depth(place);
  }

  __device__ const T* weight(int place) const {
    return static_cast<const T*>(p.weights[bank(place)]) + row * weight_size(place);
  }
  __device__ const Stored* input() const {
    return static_cast<const Stored*>(p.input) + index * p.input_architecture_stride;
  }
  __device__ Stored* grad_input() const {
    return static_cast<Stored*>(p.grad_input) + index * p.input_architecture_stride;
  }
  __device__ Stored* output() const {
    return static_cast<Stored*>(p.output) + index * output_pixels * p.output_channels;
  }
  __device__ const Stored* grad_output() const {
    return static_cast<const Stored*>(p.grad_output) + index * output_pixels * p.output_channels;
  }

  // The raw results.
  __device__ Stored* expanded() const {
    return launch.expanded ? scratch(launch.expanded, input_pixels) : kept();
  }
  __device__ Stored* filtered() const {
    return launch.filtered ? scratch(launch.filtered, output_pixels)
                           : kept() + input_pixels * hidden;
  }
  __device__ Stored* projected() const {
    if (!p.kept) return output();
    return code > 0 && !p.recompute ? kept() + (input_pixels + output_pixels) * hidden : kept();
  }
  __device__ Stored* raw(int place) const {
    return place == 0 ? expanded() : place == 1 ? filtered() : projected();
  }
  // Gradients of what the first two batch norms give, rectified.
  __device__ Stored* hidden_gradient(int place) const {
    return place == 0 ? scratch(launch.expanded_gradient, input_pixels)
                      : scratch(launch.filtered_gradient, output_pixels);
  }
  __device__ const Stored* output_gradient(int place) const {
    return place < 2 ? hidden_gradient(place) : grad_output();
  }

  // The input pixel that a strided projection reads for an output pixel.
  __device__ int64_t strided_pixel(int64_t pixel) const {
    const int64_t x = pixel % output_width, y = pixel / output_width % output_height;
    const int64_t image = pixel / output_width / output_height;
    return (image * p.height + y * p.stride) * p.width + x * p.stride;
  }
  // The other way round; -1 where no output pixel reads it.
  __device__ int64_t reading_pixel(int64_t pixel) const {
    const int64_t x = pixel % p.width, y = pixel / p.width % p.height;
    const int64_t image = pixel / p.width / p.height;
    if (x % p.stride || y % p.stride) return -1;
    return (image * output_height + y / p.stride) * output_width + x / p.stride;
  }

  // --- Batch norms -------------------------------------------------------------------------------

  __device__ int64_t blocks(int place) const { return launch.blocks[code][place]; }
  // The sums over pixels of a place: a slot for each run of kRun channels.
  template <class Value>
  __device__ Partials<Value> partials(int place) const {
    const int64_t at = place_in_group * 3 + place;
    return {
        reinterpret_cast<Value*>(static_cast<char*>(launch.partials) + at * launch.partial_bytes),
        launch.tickets + at * launch.partial_tickets, blocks(place), launch.run[place]};
  }
  template <class Value>
  __device__ Value sum(int place, int64_t channel) const {
    const int64_t run = launch.run[place];
    return partials<Value>(place).sum(channel / run, channel % run);
  }

  // Hidden channels of the widest candidate.
  __host__ __device__ int64_t widest() const {
    return p.hidden_channels[0] > p.hidden_channels[1] ? p.hidden_channels[0]
                                                       : p.hidden_channels[1];
  }
  // In the operation's result: means, and variances statistics_width behind them.
  __device__ T* statistics(int place) const {
    return static_cast<T*>(p.statistics) + index * 2 * statistics_width() + place * widest();
  }
  __device__ int64_t statistics_width() const { return 2 * widest() + p.output_channels; }
  __device__ const T* mean(int place) const {
    return p.training ? statistics(place) : row_of(p.running_mean, place);
  }
  __device__ const T* variance(int place) const {
    return p.training ? statistics(place) + statistics_width() : row_of(p.running_var, place);
  }
  __device__ Moments<T> measured(int place, int64_t channel) const {
    if (launch.measure) return sum<Moments<T>>(place, channel);
    return {T(1), mean(place)[channel], variance(place)[channel]};
  }
  __device__ Norm<T> norm(int place, int64_t channel) const {
    return norm_of(measured(place, channel), row_of(p.scales, place)[channel],
                   row_of(p.shifts, place)[channel], static_cast<T>(p.eps));
  }
  __device__ Channels<T> norm_channels(int place) const {
    return {mean(place), variance(place), row_of(p.scales, place), row_of(p.shifts, place),
            static_cast<T>(p.eps)};
  }
  __device__ NormBackward<T> norm_backward(int place, int64_t channel) const {
    const Sums<T> sums = p.training ? sum<Sums<T>>(place, channel) : Sums<T>::nothing();
    return norm_channels(place).backward(channel, sums, static_cast<T>(pixels(place)), p.training);
  }
  // A block writes what was measured to the operation's result.
  __device__ void write_statistics(int place) const {
    for (int64_t c = threadIdx.x; c < channels(place); c += blockDim.x) {
      const Moments<T> own = measured(place, c);
      statistics(place)[c] = own.mean;
      statistics(place)[statistics_width() + c] = own.variance();
    }
  }

  // Gradients of a place's weights over one of weight_parts(place) ranges of pixels.
  __device__ int64_t weight_parts(int place) const { return launch.weight_parts[code][place]; }
  __device__ T* weight_partial(int place, int64_t part) const {
    return static_cast<T*>(launch.weight_partials) +
           (place_in_group * 3 + place) * launch.weight_elements + part * weight_size(place);
  }

  // Channel by channel, a function of the pixel: the result of a batch norm, rectified; and the
  // gradient of its raw input.
  __device__ auto activated(int place) const {
    const BottleneckChoice& self = *this;
    const Stored* from = raw(place);
    const int64_t pitch = channels(place);
    return [=, &self](int64_t channel) {
      const Norm<T> own = self.norm(place, channel);
      return
          [=](int64_t pixel) { return rectify(own(load_stored(from + pixel * pitch + channel))); };
    };
  }
  __device__ auto raw_gradient(int place) const {
    const BottleneckChoice& self = *this;
    const Stored* from = raw(place);
    const Stored* gradient = output_gradient(place);
    const int64_t pitch = channels(place);
    return [=, &self](int64_t channel) {
      const NormBackward<T> own = self.norm_backward(place, channel);
      return [=](int64_t pixel) {
        const int64_t at = pixel * pitch + channel;
        return own(load_stored(gradient + at), load_stored(from + at));
      };
    };
  }

 private:
  __device__ Stored* kept() const { return static_cast<Stored*>(p.kept) + kept_before; }
  __device__ Stored* scratch(void* of, int64_t pixels) const {
    return static_cast<Stored*>(of) + place_in_group * pixels * widest();
  }
  __device__ const T* row_of(const void* const (&banks)[kBottleneckConvolutions], int place) const {
    return static_cast<const T*>(banks[bank(place)]) + row * channels(place);
  }
};

// [begin, end) of rows, columns or tiles.
struct Range {
  int64_t begin, end;
};

// What a block works for at a place: one part of the pixels, of one run of channels. Blocks are
// numbered part after part, then run after run, so that those for which a choice has no work are
// the last of the grid and hold up no other.
template <class Stored>
struct BottleneckShare {
  const BottleneckChoice<Stored>& choice;
  int place, width, part, run;

  // `channels` are a run's; those of launch.run if the block sums.
  __device__ BottleneckShare(const BottleneckChoice<Stored>& of, int at, int channels)
      : choice(of), place(at), width(channels) {
    const int blocks = of.runs(at) ? static_cast<int>(of.blocks(at)) : 1;
    part = static_cast<int>(blockIdx.x) % blocks;
    run = static_cast<int>(blockIdx.x) / blocks;
  }

  __device__ bool works() const {
    return choice.runs(place) && first_channel() < choice.channels(place);
  }
  __device__ int64_t first_channel() const { return static_cast<int64_t>(run) * width; }
  // Of so many tiles of pixels, the block's.
  __device__ Range tiles(int64_t count) const {
    const int64_t blocks = choice.blocks(place);
    return {count * part / blocks, count * (part + 1) / blocks};
  }
  // Leaves own(channel of the run) as the block's partial result. By all threads, once.
  template <class Value, class Own>
  __device__ void leave(int* last, const Own& own) const {
    leave_partial(choice.template partials<Value>(place), run, part, last, own);
  }
};

// Of the blocks that read what was measured of a place, the first writes it to the result.
template <class Stored>
__device__ void write_statistics_once(const BottleneckChoice<Stored>& choice, int place) {
  if (choice.launch.measure && blockIdx.x == 0 && blockIdx.y == 0) choice.write_statistics(place);
}

// Coefficients of `width` channels from `first` on, zeros behind the last channel. A barrier
// follows before they are read.
template <class Stored>
__device__ void fill_norms(const BottleneckChoice<Stored>& choice, int place, int64_t first,
                           int64_t width, float* table) {
  for (int64_t c = threadIdx.x; c < width; c += blockDim.x) {
    const Norm<float> norm =
        first + c < choice.channels(place) ? choice.norm(place, first + c) : Norm<float>{};
    table[c] = norm.mean;
    table[width + c] = norm.scale;
    table[2 * width + c] = norm.shift;
  }
}
template <class Stored>
__device__ void fill_norm_gradients(const BottleneckChoice<Stored>& choice, int place,
                                    int64_t first, int64_t width, float* table) {
  for (int64_t c = threadIdx.x; c < width; c += blockDim.x) {
    const NormBackward<float> norm = first + c < choice.channels(place)
                                         ? choice.norm_backward(place, first + c)
                                         : NormBackward<float>{};
    table[c] = norm.mean;
    table[width + c] = norm.scale;
    table[2 * width + c] = norm.slope;
    table[3 * width + c] = norm.offset;
  }
}

// Four channels from `channel` on, by such a table.
__device__ __forceinline__ Lanes<float, 4> activated_lanes(const Lanes<float, 4>& raw,
                                                           const float* table, int64_t width,
                                                           int64_t channel) {
  const auto mean = load_lanes<4>(table + channel);
  const auto scale = load_lanes<4>(table + width + channel);
  const auto shift = load_lanes<4>(table + 2 * width + channel);
  Lanes<float, 4> four;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    four[e] = rectify(Norm<float>{mean[e], scale[e], shift[e]}(raw[e]));
  }
  return four;
}
__device__ __forceinline__ Lanes<float, 4> raw_gradient_lanes(const Lanes<float, 4>& gradient,
                                                              const Lanes<float, 4>& raw,
                                                              const float* table, int64_t width,
                                                              int64_t channel) {
  const auto mean = load_lanes<4>(table + channel);
  const auto scale = load_lanes<4>(table + width + channel);
  const auto slope = load_lanes<4>(table + 2 * width + channel);
  const auto offset = load_lanes<4>(table + 3 * width + channel);
  Lanes<float, 4> four;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const NormBackward<float> norm{mean[e], scale[e], slope[e], offset[e]};
    four[e] = norm(gradient[e], raw[e]);
  }
  return four;
}

}  // namespace cwkernels
