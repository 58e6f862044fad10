#pragma once
#include "../parts/bottleneck_depthwise.cuh"
#include "../parts/bottleneck_general.cuh"
#include "../parts/bottleneck_general_backward.cuh"
#include "../parts/bottleneck_plan.cuh"
#include "../parts/bottleneck_pointwise.cuh"
#include "../parts/bottleneck_weights.cuh"

namespace cwkernels {

// The launches of a group, one after another until one gives an error. Where the choice lies on the
// device each happens, of the largest choice's size: 4 forward and 6 backward, 2 more of them where
// the hidden tensors are computed again. A bottleneck leaves none of them empty, an identity that
// keeps the shape 3 and 4, one that does not, whose projection runs, 2 and 2. Blocks of the next
// launch may start behind a block's last tile where it has sums to merge, else at once.
template <class Stored>
class BottleneckLaunches {
 public:
  BottleneckLaunches(const BottleneckPlan<Stored>& plan, const BottleneckLaunch& group,
                     void* stream)
      : plan_(plan), group_(group), stream_(stream) {}

  int error() const { return error_; }

  // Three launches in evaluation, four where the last convolution is measured or an identity
  // copies, or may.
  void forward() {
    hidden();
    if (plan_.fast()) {
      by_precision([&](auto precision) {
        run(bottleneck_pointwise<decltype(precision), 2>, grid(2, kProductOutputs), kProductThreads,
            ProductShared::bytes(depth(2)));
      });
    } else {
      run_general(bottleneck_pointwise_general<Stored, 2>, 2);
    }
    bool finish = group_.measure || group_.call.chosen;
    each_choice([&](const auto& choice) { finish |= !choice.runs(2); });
    const BottleneckChoice<Stored> any = plan_.choice_of(group_, 0);
    if (finish) {
      run(bottleneck_finish<Stored>,
          plan_.pixel_grid(any.output_pixels, kGeneralTile, any.p.output_channels, kGeneralTile,
                           group_.count),
          kGeneralThreads, 0);
    }
  }

  // Six launches, two more where the hidden tensors are computed again.
  void backward() {
    const InvertedBottleneckParams& p = group_.call;
    const int64_t separate = p.input_architecture_stride == 0 ? 1 : group_.count;
    const int64_t pixels = plan_.choice_of(group_, 0).input_pixels;
    if (p.recompute) hidden();
    run_general(bottleneck_output_sums<Stored>, 2);
    if (plan_.fast()) {
      by_precision([&](auto precision) {
        using Precision = decltype(precision);
        using Held = typename Precision::Stored;
        run(bottleneck_project_gradient<Precision>, grid(1, kProductOutputs), kProductThreads,
            ProductShared::bytes(p.output_channels));
        run(p.stride == 1 ? bottleneck_depthwise_gradient<Held, 1>
                          : bottleneck_depthwise_gradient<Held, 2>,
            grid(0, kDepthwiseChannels), kDepthwiseThreads, DepthwiseShared::bytes());
        run(bottleneck_input_gradient<Precision>,
            plan_.pixel_grid(pixels, kProductPixels, p.input_channels, kProductOutputs, separate),
            kProductThreads, ProductShared::bytes(group_.input_gradient_depth));
      });
    } else {
      run_general(bottleneck_project_gradient_general<Stored>, 1);
      run_general(bottleneck_depthwise_gradient_general<Stored>, 0);
      run(bottleneck_input_gradient_general<Stored>,
          plan_.pixel_grid(pixels, kGeneralTile, p.input_channels, kGeneralTile, separate),
          kGeneralThreads, GeneralShared<T>::bytes());
    }
    bank_gradients();
  }

 private:
  using T = Computed<Stored>;

  // f(precision) for kernels on matrix units, none of which is for double. bf16 has fewer digits
  // than one product of TF32 keeps, so there is nothing to split.
  template <class F>
  void by_precision(const F& f) {
    if constexpr (std::is_same_v<Stored, bf16>) {
      f(Bf16{});
    } else {
      group_.call.tf32 ? f(Tf32{}) : f(Tf32x3{});
    }
  }

  void hidden() {
    if (plan_.fast()) {
      by_precision([&](auto precision) {
        using Held = typename decltype(precision)::Stored;
        run(bottleneck_pointwise<decltype(precision), 0>, grid(0, kProductOutputs), kProductThreads,
            ProductShared::bytes(depth(0)));
        run(group_.call.stride == 1 ? bottleneck_depthwise<Held, 1> : bottleneck_depthwise<Held, 2>,
            grid(1, kDepthwiseChannels), kDepthwiseThreads, DepthwiseShared::bytes());
      });
    } else {
      run_general(bottleneck_pointwise_general<Stored, 0>, 0);
      run_general(bottleneck_depthwise_general<Stored>, 1);
    }
  }

  // Partial gradients of the weights, if they are asked for, and all sums of partial gradients.
  void bank_gradients() {
    bool weights = false;
    for (const void* grad : group_.call.grad_weights) weights |= grad != nullptr;
    int64_t elements = 0;
    each_choice([&](const auto& choice) {
      for (int place = 0; place < 3; ++place) {
        if (!choice.runs(place)) continue;
        elements = at_least(elements, choice.channels(place));
        if (weights) elements = at_least(elements, choice.weight_size(place));
      }
    });
    if (weights && plan_.fast()) {
      by_precision([&](auto precision) {
        run(bottleneck_weight_gradients<decltype(precision)>,
            {weight_blocks(kWeightTile), 2, group_.count}, kProductThreads, WeightShared::bytes());
      });
    } else if (weights) {
      run(bottleneck_weight_gradients_general<Stored>,
          {weight_blocks(kGeneralTile), 3, group_.count}, kGeneralThreads,
          GeneralShared<T>::bytes());
    }
    run(bottleneck_bank_gradients<T>, {ceil_div(elements, kGeneralThreads), 3, group_.count},
        kGeneralThreads, 0);
  }

  // Those of the group, or all that there may be.
  template <class F>
  void each_choice(const F& f) const {
    const bool known = !group_.call.chosen;
    for (int i = 0; i < (known ? group_.count : kBottleneckCodes); ++i) {
      f(plan_.choice_of(group_, known ? group_.picks[i].code : i));
    }
  }

  // Shares of a place, with runs of so many channels, as many as any choice has; none where nothing
  // runs.
  Grid grid(int place, int64_t width) const {
    Grid grid{0, 1, group_.count};
    each_choice([&](const auto& choice) {
      if (!choice.runs(place)) return;
      const int64_t runs = ceil_div(choice.channels(place), width);
      grid.x = at_least(grid.x, group_.blocks[choice.code][place] * runs);
    });
    return grid;
  }
  int64_t weight_blocks(int64_t tile) const {
    int64_t blocks = 0;
    each_choice([&](const auto& choice) {
      for (int place = 0; place < 3; ++place) {
        if (!choice.runs(place)) continue;
        const int64_t parts = group_.weight_parts[choice.code][place];
        blocks = at_least(blocks, parts * plan_.weight_tiles(choice, place, tile));
      }
    });
    return blocks;
  }
  int64_t depth(int place) const {
    int64_t depth = 0;
    each_choice([&](const auto& choice) {
      if (choice.runs(place)) depth = at_least(depth, choice.depth(place));
    });
    return depth;
  }

  void run(void (*kernel)(BottleneckLaunch), Grid grid, int threads, size_t shared) {
    if (error_ == 0) error_ = launch(kernel, grid, threads, shared, stream_, group_);
  }
  void run_general(void (*kernel)(BottleneckLaunch), int place) {
    run(kernel, grid(place, kGeneralTile), kGeneralThreads, GeneralShared<T>::bytes());
  }

  const BottleneckPlan<Stored>& plan_;
  const BottleneckLaunch& group_;
  void* stream_;
  int error_ = 0;
};

template <class Stored>
int launch_bottleneck(const InvertedBottleneckParams& params, void* stream) {
  BottleneckPlan<Stored> plan(params);
  return plan.each_group([&](const BottleneckLaunch& group) {
    BottleneckLaunches<Stored> launches(plan, group, stream);
    params.grad_output ? launches.backward() : launches.forward();
    return launches.error();
  });
}

}  // namespace cwkernels
