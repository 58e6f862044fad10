#pragma once
#include "../ops/inverted_bottleneck.h"
#include "depthwise_rows.h"
#include "pointwise.h"

// What the passes of inverted_bottleneck share: an architecture's choice, its batch norms, and the
// convolutions that give the hidden tensors.
namespace cwkernels::CWK_ISA {

using BottleneckParams = InvertedBottleneckParams;

// What one architecture runs. Its convolutions are counted by place: 0 expand, 1 depthwise,
// 2 project; a projection of the input is at place 2 too.
template <class T>
struct Choice {
  const BottleneckParams& p;
  int64_t a, code, row, hidden, kernel_size;
  int64_t input_pixels, output_height, output_width, output_pixels;
  bool again;     // an architecture before this one read the same row of the same banks
  bool residual;  // the input is added to the output
  bool kept;      // there is a place for what backward needs

  Choice(const BottleneckParams& params, int64_t architecture)
      : p(params),
        a(architecture),
        code(params.selection[2 * architecture]),
        row(params.selection[2 * architecture + 1]),
        hidden(code > 0 ? params.hidden_channels[code - 1] : 0),
        kernel_size(code > 0 ? params.kernel_size[code - 1] : 0),
        input_pixels(params.images * params.height * params.width),
        output_height(bottleneck_side(params.height, params.stride)),
        output_width(bottleneck_side(params.width, params.stride)),
        output_pixels(params.images * output_height * output_width),
        again(false),
        residual(code > 0 && !params.weights[kBottleneckProjection]),
        kept(params.kept != nullptr) {
    for (int64_t b = 0; b < a; ++b) {
      again |= p.selection[2 * b] == code && p.selection[2 * b + 1] == row;
    }
  }

  int64_t bank(int64_t place) const {
    return code > 0 ? 3 * (code - 1) + place : int64_t{kBottleneckProjection};
  }
  int64_t channels(int64_t place) const { return place < 2 ? hidden : p.output_channels; }

  // Elements in one weight set of a place.
  int64_t weight_size(int64_t place) const {
    if (code == 0) return p.output_channels * p.input_channels;
    const int64_t others[] = {p.input_channels, kernel_size * kernel_size, p.output_channels};
    return hidden * others[place];
  }
  const T* weight(int64_t place) const {
    return static_cast<const T*>(p.weights[bank(place)]) + row * weight_size(place);
  }
  T* grad_weight(int64_t place) const {
    T* grad = static_cast<T*>(p.grad_weights[bank(place)]);
    return grad ? grad + p.slots[a] * weight_size(place) : nullptr;
  }
  const T* row_of(const void* const (&banks)[kBottleneckConvolutions], int64_t place) const {
    return static_cast<const T*>(banks[bank(place)]) + row * channels(place);
  }

  const T* input() const {
    return static_cast<const T*>(p.input) + a * p.input_architecture_stride;
  }
  T* grad_input() const { return static_cast<T*>(p.grad_input) + a * p.input_architecture_stride; }
  T* output() const { return static_cast<T*>(p.output) + a * output_pixels * p.output_channels; }
  const T* grad_output() const {
    return static_cast<const T*>(p.grad_output) + a * output_pixels * p.output_channels;
  }

  // Where what is kept of this architecture begins, and the last piece of it.
  T* kept_begin() const {
    T* at = static_cast<T*>(p.kept);
    for (int64_t b = 0; b < a; ++b) at += bottleneck_kept(p, p.selection[2 * b]);
    return at;
  }
  T* kept_projected() const {
    return kept_begin() + bottleneck_kept(p, code) - output_pixels * p.output_channels;
  }

  // Mean and variance of a place in the operation's result: [2], `statistics_width` apart.
  int64_t statistics_width() const {
    return 2 * max(p.hidden_channels[0], p.hidden_channels[1]) + p.output_channels;
  }
  T* statistics(int64_t place) const {
    return static_cast<T*>(p.statistics) + a * 2 * statistics_width() +
           place * max(p.hidden_channels[0], p.hidden_channels[1]);
  }
  void set_statistics(int64_t place, const T* measured) const {
    for (int64_t i = 0; i < 2; ++i) {
      for (int64_t c = 0; c < channels(place); ++c) {
        statistics(place)[i * statistics_width() + c] = measured[i * channels(place) + c];
      }
    }
  }

  const T* mean(int64_t place) const {
    return p.training ? statistics(place) : row_of(p.running_mean, place);
  }
  const T* variance(int64_t place) const {
    return p.training ? statistics(place) + statistics_width() : row_of(p.running_var, place);
  }
  Norm<T> norm(int64_t place, T* coefficients) const {
    return make_norm(mean(place), variance(place), row_of(p.scales, place), row_of(p.shifts, place),
                     p.eps, channels(place), coefficients);
  }
  T* take_coefficients(int64_t place, int64_t arrays, Arena& arena) const {
    return arena.take<T>(arrays * padded_channels<T>(channels(place)));
  }
};

template <class T>
using LoadActivated = LoadRectified<T, LoadNormalized<T>>;

// The expanding and the depthwise convolution, to raw tensors; again for backward, if recomputed.
template <class T>
class Hidden {
 public:
  Hidden(const Choice<T>& choice, Arena& arena)
      : choice_(choice),
        expand_(choice.p.parallel, choice.input_pixels, choice.p.input_channels, choice.hidden,
                arena),
        filter_(choice.p.parallel, choice.p.images, choice.p.height, choice.p.width,
                choice.p.stride, choice.kernel_size, choice.hidden, arena) {
    measured_ = arena.take<T>(2 * choice.hidden);
    coefficients_ = choice.take_coefficients(0, 3, arena);
  }

  // `measure`: their statistics are not known yet.
  void run(T* expanded, T* filtered, bool measure) const {
    const int64_t channels = choice_.p.input_channels;
    T* measured = measure ? measured_ : nullptr;
    expand_.run(
        choice_.weight(0), LoadPlain<T>{choice_.input()}, [&](int64_t p) { return p * channels; },
        expanded, measured);
    if (measure) choice_.set_statistics(0, measured_);
    const LoadActivated<T> load{{expanded, choice_.norm(0, coefficients_)}};
    filter_.run(choice_.weight(1), load, filtered, measured);
    if (measure) choice_.set_statistics(1, measured_);
  }

 private:
  Choice<T> choice_;
  PointwiseForward<T> expand_;
  DepthwiseForward<T> filter_;
  T* measured_;
  T* coefficients_;
};

}  // namespace cwkernels::CWK_ISA
