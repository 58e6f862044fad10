#pragma once
#include <type_traits>

#include "bottleneck_depthwise.cuh"
#include "bottleneck_general.cuh"
#include "bottleneck_weights.cuh"

// How a call of inverted_bottleneck is cut into groups of architectures, blocks and scratch.
namespace cwkernels {

// Scratch that lets architectures run together; one alone takes what it needs.
constexpr int64_t kBottleneckScratch = int64_t{32} << 20;
// Channels of the fast kernels, whose coefficients lie in shared memory.
constexpr int64_t kFastChannels = 1536;
// Pixels that are worth a partial gradient of the weights.
constexpr int64_t kWeightPixels = 256;

inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

// Cuts scratch into pieces of whole 256 bytes.
class Cutter {
 public:
  explicit Cutter(void* begin) : begin_(static_cast<char*>(begin)) {}

  void* take(int64_t bytes) {
    void* piece = begin_ ? begin_ + used_ : nullptr;
    used_ += ceil_div(bytes, 256) * 256;
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  char* begin_;
  int64_t used_ = 0;
};

// Whether the kernels for wide loads and matrix units, of float or bf16, run a call.
inline bool bottleneck_is_fast(const InvertedBottleneckParams& p) {
  bool fits = !p.double_precision && p.input_channels % 16 == 0 && p.output_channels % 16 == 0;
  for (int i = 0; i < 2; ++i) {
    fits &= p.hidden_channels[i] % 16 == 0 && p.hidden_channels[i] <= kFastChannels;
    fits &= p.kernel_size[i] == 3 || p.kernel_size[i] == 5;
  }
  fits &= p.input_channels <= kFastChannels && p.output_channels <= kFastChannels;
  for (const void* weight : p.weights) fits &= starts_wide(weight);
  return fits && starts_wide(p.input) && starts_wide(p.output) && starts_wide(p.kept) &&
         starts_wide(p.grad_output) && starts_wide(p.grad_input);
}

template <class Stored>
class BottleneckPlan {
 public:
  explicit BottleneckPlan(const InvertedBottleneckParams& params)
      : processors_(current_device().processors), fast_(bottleneck_is_fast(params)) {
    launch_.call = params;
    launch_.measure = params.training && !params.grad_output;
    launch_.most_kept = bottleneck_most_kept(params);
    cut_pixels();
    for (int code = 0; code < kBottleneckCodes; ++code) {
      for (int place = 0; place < 3; ++place) fit(choice_of(launch_, code), place);
    }
    take_scratch();
  }

  // What an architecture with a code runs, as far as sizes go.
  static BottleneckChoice<Stored> choice_of(const BottleneckLaunch& launch, int32_t code) {
    BottleneckPick pick{};
    pick.code = code;
    return {launch, pick, 0};
  }

  bool fast() const { return fast_; }
  const CudaScratch& scratch() const { return scratch_; }

  // f(launch) for one group after another until one gives an error, which is returned.
  template <class F>
  int each_group(const F& f) {
    const InvertedBottleneckParams& p = launch_.call;
    int64_t kept = 0;
    for (int64_t first = 0; first < p.architectures; first += group_) {
      launch_.first = first;
      launch_.count = static_cast<int>(at_most(group_, p.architectures - first));
      for (int i = 0; !p.chosen && i < launch_.count; ++i) {
        pick(i, kept);
        kept += bottleneck_kept(p, launch_.picks[i].code);
      }
      if (const int error = f(launch_)) return error;
    }
    return 0;
  }

  // Blocks for all pixels of the images, or of the output, that sum nothing.
  Grid pixel_grid(int64_t pixels, int64_t tile, int64_t channels, int64_t run,
                  int64_t architectures) const {
    const int64_t runs = ceil_div(channels, run);
    return {sum_blocks(processors_, runs, ceil_div(pixels, tile)), runs, architectures};
  }

  // Tiles of `tile` channels squared of a place's weights, or of so many channels' taps.
  static int64_t weight_tiles(const BottleneckChoice<Stored>& choice, int place, int64_t tile) {
    const int64_t across = place == 1 ? 1 : ceil_div(choice.depth(place), tile);
    return across * ceil_div(choice.channels(place), tile);
  }

 private:
  using T = Computed<Stored>;
  static constexpr int64_t kStoredBytes = sizeof(Stored), kComputedBytes = sizeof(T);

  // How wide the runs of channels are that blocks sum, by the kernel that leaves the sums of a
  // place, and how images are cut for the depthwise convolution.
  void cut_pixels() {
    const InvertedBottleneckParams& p = launch_.call;
    const bool backward = p.grad_output != nullptr;
    const int fast[2][3] = {{kProductOutputs, kDepthwiseChannels, kProductOutputs},
                            {kDepthwiseChannels, kProductOutputs, kGeneralTile}};
    for (int place = 0; place < 3; ++place) {
      launch_.run[place] = fast_ ? fast[backward][place] : kGeneralTile;
    }
    const int64_t height = bottleneck_side(p.height, p.stride);
    const int64_t width = bottleneck_side(p.width, p.stride);
    for (int i = 0; fast_ && i < 2; ++i) {
      const int taps = static_cast<int>(p.kernel_size[i]), stride = static_cast<int>(p.stride);
      launch_.filter_tiles[i] =
          depthwise_tiles(p.images, height, width, taps, stride, forward_reach);
      launch_.gradient_tiles[i] =
          depthwise_tiles(p.images, p.height, p.width, taps, stride, gradient_reach);
    }
  }

  // Pixel tiles of the kernel that leaves the sums of a place.
  int64_t tiles(const BottleneckChoice<Stored>& choice, int place) const {
    const bool backward = launch_.call.grad_output != nullptr;
    if (!fast_ || (backward && place == 2)) return ceil_div(choice.pixels(place), kGeneralTile);
    if (place == (backward ? 0 : 1)) {
      return (backward ? launch_.gradient_tiles : launch_.filter_tiles)[choice.code - 1].count;
    }
    return ceil_div(choice.pixels(place), kProductPixels);
  }
  int64_t runs(const BottleneckChoice<Stored>& choice, int place) const {
    return ceil_div(choice.channels(place), launch_.run[place]);
  }
  int64_t blocks(const BottleneckChoice<Stored>& choice, int place) const {
    return sum_blocks(processors_, runs(choice, place), tiles(choice, place));
  }
  int64_t weight_parts(const BottleneckChoice<Stored>& choice, int place) const {
    if (fast_ && place == 1) return blocks(choice, 0);
    const int64_t tiles = weight_tiles(choice, place, fast_ ? kWeightTile : kGeneralTile);
    return sum_blocks(processors_, tiles, ceil_div(choice.pixels(place), kWeightPixels));
  }

  // Cuts the pixels of a choice's place, and makes the scratch of an architecture large enough.
  void fit(const BottleneckChoice<Stored>& choice, int place) {
    if (!choice.runs(place)) return;
    launch_.blocks[choice.code][place] = static_cast<int32_t>(blocks(choice, place));
    launch_.weight_parts[choice.code][place] = static_cast<int32_t>(weight_parts(choice, place));
    const Partials<Moments<T>> own{nullptr, nullptr, blocks(choice, place), launch_.run[place]};
    const int64_t slots = runs(choice, place);
    const int64_t bytes = slots * own.values_per_slot() * static_cast<int64_t>(sizeof(Moments<T>));
    launch_.partial_bytes = at_least(launch_.partial_bytes, bytes);
    launch_.partial_tickets = at_least(launch_.partial_tickets, slots * own.tickets_per_slot());
    launch_.weight_elements =
        at_least(launch_.weight_elements, weight_parts(choice, place) * choice.weight_size(place));
    if (place == (choice.code > 0 ? 0 : 2)) {
      launch_.input_gradient_depth = at_least(launch_.input_gradient_depth, choice.channels(place));
    }
  }

  void take_scratch() {
    const InvertedBottleneckParams& p = launch_.call;
    const BottleneckChoice<Stored> any = choice_of(launch_, 0);
    const int64_t expanded = any.input_pixels * any.widest() * kStoredBytes;
    const int64_t filtered = any.output_pixels * any.widest() * kStoredBytes;
    const bool backward = p.grad_output != nullptr;
    const bool computed = p.recompute || (!backward && !p.kept);
    const int64_t weights = backward ? 3 * launch_.weight_elements * kComputedBytes : 0;
    const int64_t each =
        (expanded + filtered) * (computed + backward) + 3 * launch_.partial_bytes + weights;
    group_ =
        at_most(at_most(p.architectures, kBottleneckGroup), at_least(kBottleneckScratch / each, 1));
    Cutter cutter(p.workspace);
    launch_.tickets = p.tickets;
    launch_.partials = cutter.take(group_ * 3 * launch_.partial_bytes);
    if (computed) {
      launch_.expanded = cutter.take(group_ * expanded);
      launch_.filtered = cutter.take(group_ * filtered);
    }
    if (backward) {
      launch_.expanded_gradient = cutter.take(group_ * expanded);
      launch_.filtered_gradient = cutter.take(group_ * filtered);
      launch_.weight_partials = cutter.take(group_ * weights);
    }
    scratch_ = {cutter.used(), group_ * 3 * launch_.partial_tickets};
  }

  void pick(int i, int64_t kept) {
    const InvertedBottleneckParams& p = launch_.call;
    BottleneckPick& own = launch_.picks[i];
    const int64_t index = launch_.first + i;
    own = {};
    own.code = static_cast<int32_t>(p.selection[2 * index]);
    own.row = p.selection[2 * index + 1];
    own.slot = p.slots ? p.slots[index] : 0;
    own.kept = kept;
    for (int64_t b = 0; b < launch_.first; ++b) {
      own.again |= p.selection[2 * b] == own.code && p.selection[2 * b + 1] == own.row;
    }
  }

  int processors_;
  bool fast_;
  BottleneckLaunch launch_{};
  int64_t group_;
  CudaScratch scratch_;
};

}  // namespace cwkernels
