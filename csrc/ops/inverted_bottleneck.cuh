#pragma once
#include "../parts/bottleneck_general.cuh"
#include "../parts/bottleneck_general_backward.cuh"

namespace cwkernels {

// Scratch that lets architectures run together; one alone takes what it needs.
constexpr int64_t kBottleneckScratch = int64_t{32} << 20;

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

// How a call is cut into groups of architectures, and what they have as scratch.
template <class T>
class BottleneckPlan {
 public:
  explicit BottleneckPlan(const InvertedBottleneckParams& params)
      : processors_(current_device().processors) {
    launch_.call = params;
    launch_.measure = params.training && !params.grad_output;
    launch_.weight_blocks = 2 * processors_;
    for (int code = 0; code < 3; ++code) {
      launch_.picks[code].code = code;
      for (int place = 0; place < 3; ++place) fit(BottleneckChoice<T>(launch_, code), place);
    }
    const BottleneckChoice<T> any(launch_, 0);
    const int64_t expanded = any.input_pixels * any.widest() * size();
    const int64_t filtered = any.output_pixels * any.widest() * size();
    const bool computed = params.grad_output ? params.recompute : !params.kept || params.recompute;
    const int64_t hidden = (expanded + filtered) * (computed + (params.grad_output != nullptr));
    group_ = at_most(at_most(params.architectures, kBottleneckGroup),
                     hidden > 0 ? at_least(kBottleneckScratch / hidden, 1) : kBottleneckGroup);
    Cutter cutter(params.workspace);
    launch_.tickets = params.tickets;
    launch_.partials = cutter.take(group_ * 3 * launch_.partial_bytes);
    if (computed) {
      launch_.expanded = cutter.take(group_ * expanded);
      launch_.filtered = cutter.take(group_ * filtered);
    }
    if (params.grad_output) {
      launch_.expanded_gradient = cutter.take(group_ * expanded);
      launch_.filtered_gradient = cutter.take(group_ * filtered);
      launch_.weight_partials = cutter.take(group_ * 3 * launch_.weight_elements * size());
    }
    scratch_ = {cutter.used(), group_ * 3 * launch_.partial_tickets};
  }

  const CudaScratch& scratch() const { return scratch_; }

  // f(launch) for one group after another until one gives an error, which is returned.
  template <class F>
  int each_group(const F& f) {
    const InvertedBottleneckParams& p = launch_.call;
    int64_t kept = 0;
    for (int64_t first = 0; first < p.architectures; first += group_) {
      launch_.count = static_cast<int>(at_most(group_, p.architectures - first));
      for (int i = 0; i < launch_.count; ++i) {
        pick(first, i, kept);
        kept += bottleneck_kept(p, launch_.picks[i].code);
      }
      if (const int error = f(launch_)) return error;
    }
    return 0;
  }

  // Blocks for a place of the picks of a launch; none where nothing runs there.
  static Grid grid(const BottleneckLaunch& launch, int place) {
    Grid grid{0, 0, launch.count};
    for (int i = 0; i < launch.count; ++i) {
      const BottleneckChoice<T> choice(launch, i);
      if (!choice.runs(place)) continue;
      grid.x = at_least(grid.x, launch.picks[i].blocks[place]);
      grid.y = at_least(grid.y, ceil_div(choice.channels(place), kBottleneckRun));
    }
    return grid;
  }
  // Blocks for all pixels of the images, or of the output, that sum nothing.
  Grid pixel_grid(int64_t pixels, int64_t channels, int64_t architectures) const {
    const int64_t runs = ceil_div(channels, kBottleneckRun);
    return {sum_blocks(processors_, runs, ceil_div(pixels, kGeneralTile)), runs, architectures};
  }

 private:
  static constexpr int64_t size() { return static_cast<int64_t>(sizeof(T)); }

  int64_t blocks(const BottleneckChoice<T>& choice, int place) const {
    return sum_blocks(processors_, ceil_div(choice.channels(place), kBottleneckRun),
                      ceil_div(choice.pixels(place), kGeneralTile));
  }
  // Makes the scratch of an architecture large enough for a place of a choice.
  void fit(const BottleneckChoice<T>& choice, int place) {
    if (!choice.runs(place)) return;
    const Partials<Moments<T>> own{nullptr, nullptr, blocks(choice, place), kBottleneckRun};
    const int64_t runs = ceil_div(choice.channels(place), kBottleneckRun);
    const int64_t bytes = runs * own.values_per_slot() * static_cast<int64_t>(sizeof(Moments<T>));
    launch_.partial_bytes = at_least(launch_.partial_bytes, bytes);
    launch_.partial_tickets = at_least(launch_.partial_tickets, runs * own.tickets_per_slot());
    launch_.weight_elements = at_least(
        launch_.weight_elements, weight_tiles(choice, place).parts * choice.weight_size(place));
  }
  void pick(int64_t first, int i, int64_t kept) {
    const InvertedBottleneckParams& p = launch_.call;
    const int64_t index = first + i;
    BottleneckPick& own = launch_.picks[i];
    own = {p.selection[2 * index + 1],
           p.slots ? p.slots[index] : 0,
           kept,
           index,
           {},
           static_cast<int32_t>(p.selection[2 * index]),
           false};
    for (int64_t b = 0; b < first; ++b) {
      own.again |= p.selection[2 * b] == own.code && p.selection[2 * b + 1] == own.row;
    }
    const BottleneckChoice<T> choice(launch_, i);
    for (int place = 0; place < 3; ++place) {
      own.blocks[place] = choice.runs(place) ? static_cast<int32_t>(blocks(choice, place)) : 0;
    }
  }

  int processors_;
  BottleneckLaunch launch_{};
  int64_t group_;
  CudaScratch scratch_;
};

// Launches one kernel after another until one gives an error.
class BottleneckStream {
 public:
  BottleneckStream(const BottleneckLaunch& params, void* stream)
      : params_(params), stream_(stream) {}

  void run(void (*kernel)(BottleneckLaunch), Grid grid, int threads, size_t shared) {
    if (error_ == 0) error_ = launch(kernel, grid, threads, shared, stream_, params_);
  }
  int error() const { return error_; }

 private:
  const BottleneckLaunch& params_;
  void* stream_;
  int error_ = 0;
};

template <class T>
void launch_hidden(const BottleneckLaunch& group, BottleneckStream& stream) {
  using Plan = BottleneckPlan<T>;
  constexpr size_t kShared = GeneralShared<T>::bytes();
  stream.run(bottleneck_pointwise_general<T, 0>, Plan::grid(group, 0), kGeneralThreads, kShared);
  stream.run(bottleneck_depthwise_general<T>, Plan::grid(group, 1), kGeneralThreads, kShared);
}

// Three launches in evaluation, four where the last convolution is measured or an identity copies.
template <class T>
int launch_forward(BottleneckPlan<T>& plan, void* stream) {
  return plan.each_group([&](const BottleneckLaunch& group) {
    const InvertedBottleneckParams& p = group.call;
    BottleneckStream launches(group, stream);
    launch_hidden<T>(group, launches);
    launches.run(bottleneck_pointwise_general<T, 2>, plan.grid(group, 2), kGeneralThreads,
                 GeneralShared<T>::bytes());
    bool finish = group.measure;
    for (int i = 0; i < group.count; ++i) finish |= !BottleneckChoice<T>(group, i).runs(2);
    const BottleneckChoice<T> any(group, 0);
    if (finish) {
      launches.run(bottleneck_finish_general<T>,
                   plan.pixel_grid(any.output_pixels, p.output_channels, group.count),
                   kGeneralThreads, 0);
    }
    return launches.error();
  });
}

// Blocks for the partial gradients of the weights, and for their sums.
template <class T>
void launch_bank_gradients(const BottleneckLaunch& group, BottleneckStream& stream) {
  bool weights = false;
  for (const void* grad : group.call.grad_weights) weights |= grad != nullptr;
  int64_t shares = 0, elements = 0;
  for (int i = 0; i < group.count; ++i) {
    const BottleneckChoice<T> choice(group, i);
    for (int place = 0; place < 3; ++place) {
      if (!choice.runs(place)) continue;
      const WeightTiles tiles = weight_tiles(choice, place);
      shares = at_least(shares, tiles.tiles * tiles.parts);
      elements = at_least(elements, choice.channels(place));
      if (weights) elements = at_least(elements, choice.weight_size(place));
    }
  }
  if (weights) {
    stream.run(bottleneck_weight_gradients_general<T>, {shares, 3, group.count}, kGeneralThreads,
               GeneralShared<T>::bytes());
  }
  stream.run(bottleneck_bank_gradients<T>, {ceil_div(elements, kGeneralThreads), 3, group.count},
             kGeneralThreads, 0);
}

// Six launches, two more where the hidden tensors are computed again.
template <class T>
int launch_backward(BottleneckPlan<T>& plan, void* stream) {
  return plan.each_group([&](const BottleneckLaunch& group) {
    const InvertedBottleneckParams& p = group.call;
    constexpr size_t kShared = GeneralShared<T>::bytes();
    BottleneckStream launches(group, stream);
    if (p.recompute) launch_hidden<T>(group, launches);
    launches.run(bottleneck_output_sums_general<T>, plan.grid(group, 2), kGeneralThreads, kShared);
    launches.run(bottleneck_project_gradient_general<T>, plan.grid(group, 1), kGeneralThreads,
                 kShared);
    launches.run(bottleneck_depthwise_gradient_general<T>, plan.grid(group, 0), kGeneralThreads,
                 kShared);
    const int64_t separate = p.input_architecture_stride == 0 ? 1 : group.count;
    const BottleneckChoice<T> any(group, 0);
    launches.run(bottleneck_input_gradient_general<T>,
                 plan.pixel_grid(any.input_pixels, p.input_channels, separate), kGeneralThreads,
                 kShared);
    launch_bank_gradients<T>(group, launches);
    return launches.error();
  });
}

template <class T>
int launch_bottleneck(const InvertedBottleneckParams& params, void* stream) {
  BottleneckPlan<T> plan(params);
  return params.grad_output ? launch_backward(plan, stream) : launch_forward(plan, stream);
}

}  // namespace cwkernels
