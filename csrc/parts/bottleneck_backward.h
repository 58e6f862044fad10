#pragma once
#include "bottleneck_forward.h"
#include "depthwise_gradient.h"
#include "pointwise_gradient.h"

namespace cwkernels::CWK_ISA {

// The backward passes of a choice's batch norms, from the sums over the gradient of each.
template <class T>
class NormGradients {
 public:
  NormGradients(const Choice<T>& choice, Arena& arena) : choice_(choice) {
    for (int64_t place = 0; place < 3; ++place) {
      if (choice.code == 0 && place < 2) continue;
      forward_[place] = choice.take_coefficients(place, 3, arena);
      backward_[place] = choice.take_coefficients(place, 4, arena);
      sums_[place] = arena.take<double>(2 * choice.channels(place));
    }
    partials_ = arena.take<T>(band_count(choice.output_pixels) * 2 *
                              padded_channels<T>(choice.p.output_channels));
  }

  double* sums(int64_t place) const { return sums_[place]; }
  Norm<T> norm(int64_t place) const { return choice_.norm(place, forward_[place]); }

  // Once the sums are there: what turns gradients, and the gradients of scale and shift.
  NormBackward<T> backward(int64_t place) const {
    const int64_t channels = choice_.channels(place), bank = choice_.bank(place);
    const int64_t pixels = place == 0 ? choice_.input_pixels : choice_.output_pixels;
    const double* sums = sums_[place];
    const int64_t slot = choice_.p.slots[choice_.a];
    T* scale = static_cast<T*>(choice_.p.grad_scales[bank]) + slot * channels;
    T* shift = static_cast<T*>(choice_.p.grad_shifts[bank]) + slot * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const double variance = static_cast<double>(choice_.variance(place)[c]);
      const T scaled =
          static_cast<T>(sums[channels + c] / __builtin_sqrt(variance + choice_.p.eps));
      const T shifted = static_cast<T>(sums[c]);
      scale[c] = choice_.again ? scale[c] + scaled : scaled;
      shift[c] = choice_.again ? shift[c] + shifted : shifted;
    }
    return make_norm_backward(choice_.mean(place), choice_.variance(place),
                              choice_.row_of(choice_.p.scales, place), choice_.p.eps,
                              choice_.p.training, sums, static_cast<double>(pixels), channels,
                              backward_[place]);
  }

  // The sums of the last batch norm, from the output's gradient.
  void sum_output(const T* raw) const {
    const int64_t channels = choice_.p.output_channels;
    const int64_t padded = padded_channels<T>(channels), bands = band_count(choice_.output_pixels);
    const T* mean = norm(2).mean;
    parallel_for(choice_.p.parallel, bands, [&](int64_t index) {
      const Band band(index, choice_.output_pixels);
      const auto load_from = [&](const T* data) {
        const T* begin = data + band.begin * channels;
        return [=](int64_t p, int64_t c, int64_t left) {
          return load_channels(begin + p * channels + c, left);
        };
      };
      sum_gradients(load_from(choice_.grad_output()), load_from(raw), mean, band.pixels, channels,
                    partials_ + index * 2 * padded);
    });
    merge_gradients(partials_, bands, channels, sums_[2]);
  }

 private:
  Choice<T> choice_;
  T* forward_[3] = {};
  T* backward_[3] = {};
  double* sums_[3] = {};
  T* partials_;
};

// Gradient of the images from a band of values: with the output's where there is a residual, added
// to those of the architectures before where all share the images.
template <class T>
CWK_FLATTEN inline void finish_band(const Choice<T>& choice, const Band& band, const T* values,
                                    int64_t pitch) {
  const int64_t channels = choice.p.input_channels;
  const bool add = choice.a > 0 && choice.p.input_architecture_stride == 0;
  for (int64_t p = 0; p < band.pixels; ++p) {
    for (int64_t c = 0; c < channels; c += kLanes<T>) {
      const int64_t at = (band.begin + p) * channels + c, left = channels - c;
      Vector<T> value = load_channels(values + p * pitch + c, left);
      if (choice.residual) value += load_channels(choice.grad_output() + at, left);
      if (add) value = load_channels(choice.grad_input() + at, left) + value;
      store_channels(choice.grad_input() + at, value, left);
    }
  }
}

template <class T>
class BottleneckBackward {
 public:
  BottleneckBackward(const Choice<T>& choice, Arena& arena)
      : choice_(choice),
        hidden_(choice, arena),
        norms_(choice, arena),
        project_(choice.p.parallel, choice.output_pixels, choice.hidden, choice.p.output_channels,
                 arena),
        filter_(choice.p.parallel, choice.p.images, choice.p.height, choice.p.width,
                choice.p.stride, choice.kernel_size, choice.hidden, arena),
        expand_(choice.p.parallel, choice.input_pixels, choice.p.input_channels, choice.hidden,
                arena) {
    const int64_t expanded = choice.input_pixels * choice.hidden;
    const int64_t filtered = choice.output_pixels * choice.hidden;
    expanded_gradient_ = arena.take<T>(expanded);
    filtered_gradient_ = arena.take<T>(filtered);
    const bool again = choice.p.recompute;
    expanded_ = again ? arena.take<T>(expanded) : choice.kept_begin();
    filtered_ = again ? arena.take<T>(filtered) : expanded_ + expanded;
  }

  void run() const {
    if (choice_.p.recompute) hidden_.run(expanded_, filtered_, false);
    const T* projected = choice_.kept_projected();
    norms_.sum_output(projected);
    const LoadActivated<T> filtered{{filtered_, norms_.norm(1)}};
    project_.run(choice_.weight(2),
                 LoadNormGradient<T>{choice_.grad_output(), projected, norms_.backward(2)},
                 filtered, filtered_, filtered.inner.norm.mean, filtered_gradient_, norms_.sums(1),
                 choice_.grad_weight(2), choice_.again);
    const LoadActivated<T> expanded{{expanded_, norms_.norm(0)}};
    filter_.run(choice_.weight(1),
                LoadNormGradient<T>{filtered_gradient_, filtered_, norms_.backward(1)}, expanded,
                expanded_, expanded.inner.norm.mean, expanded_gradient_, norms_.sums(0),
                choice_.grad_weight(1), choice_.again);
    const int64_t channels = choice_.p.input_channels;
    expand_.run(
        choice_.weight(0), LoadNormGradient<T>{expanded_gradient_, expanded_, norms_.backward(0)},
        LoadPlain<T>{choice_.input()}, [&](int64_t p) { return p * channels; },
        [&](const Band& band, const T* values, int64_t pitch) {
          finish_band(choice_, band, values, pitch);
        },
        choice_.grad_weight(0), choice_.again);
  }

 private:
  Choice<T> choice_;
  Hidden<T> hidden_;
  NormGradients<T> norms_;
  ProjectGradient<T> project_;
  DepthwiseGradient<T> filter_;
  ExpandGradient<T> expand_;
  T* expanded_gradient_;
  T* filtered_gradient_;
  T* expanded_;
  T* filtered_;
};

template <class T>
class IdentityBackward {
 public:
  IdentityBackward(const Choice<T>& choice, Arena& arena)
      : choice_(choice),
        norms_(choice, arena),
        project_(choice.p.parallel, choice.output_pixels, choice.p.input_channels,
                 choice.p.output_channels, arena) {}

  void run() const {
    if (!choice_.p.weights[kBottleneckProjection]) return pass();
    const T* projected = choice_.kept_projected();
    norms_.sum_output(projected);
    if (!add()) clear_input();
    const StridedPixels<T> pixels{choice_};
    project_.run(
        choice_.weight(2),
        LoadNormGradient<T>{choice_.grad_output(), projected, norms_.backward(2)},
        LoadPlain<T>{choice_.input()}, pixels,
        [&](const Band& band, const T* values, int64_t pitch) {
          for (int64_t p = 0; p < band.pixels; ++p) {
            T* to = choice_.grad_input() + pixels(band.begin + p);
            for (int64_t c = 0; c < choice_.p.input_channels; ++c) {
              to[c] += values[p * pitch + c];
            }
          }
        },
        choice_.grad_weight(2), choice_.again);
  }

 private:
  // Whether other architectures have written the gradient of the images that all share.
  bool add() const { return choice_.a > 0 && choice_.p.input_architecture_stride == 0; }

  void clear_input() const {
    parallel_for(choice_.p.parallel, choice_.p.images, [&](int64_t image) {
      const int64_t size = choice_.p.height * choice_.p.width * choice_.p.input_channels;
      clear(choice_.grad_input() + image * size, size);
    });
  }

  void pass() const {
    const int64_t channels = choice_.p.input_channels;
    parallel_for(choice_.p.parallel, band_count(choice_.input_pixels), [&](int64_t index) {
      const Band band(index, choice_.input_pixels);
      finish_band(choice_, band, choice_.grad_output() + band.begin * channels, channels);
    });
  }

  Choice<T> choice_;
  NormGradients<T> norms_;
  ExpandGradient<T> project_;
};

}  // namespace cwkernels::CWK_ISA
