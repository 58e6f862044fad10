#pragma once
#include "bottleneck.h"

namespace cwkernels::CWK_ISA {

// output = norm(raw) (+ input), a band of pixels at a time; raw may be the output.
template <class T>
CWK_FLATTEN inline void normalize_band(const Choice<T>& choice, const Norm<T>& norm, const T* raw,
                                       int64_t index) {
  const Band band(index, choice.output_pixels);
  const int64_t channels = choice.p.output_channels;
  const T* input = choice.residual ? choice.input() : nullptr;
  for (int64_t p = band.begin; p < band.begin + band.pixels; ++p) {
    for (int64_t c = 0; c < channels; c += kLanes<T>) {
      const int64_t at = p * channels + c, left = channels - c;
      Vector<T> value = norm(load_channels(raw + at, left), c);
      if (input) value += load_channels(input + at, left);
      store_channels(choice.output() + at, value, left);
    }
  }
}

template <class T>
void normalize_output(const Choice<T>& choice, const T* raw, T* coefficients) {
  const Norm<T> norm = choice.norm(2, coefficients);
  parallel_for(choice.p.parallel, band_count(choice.output_pixels),
               [&](int64_t band) { normalize_band(choice, norm, raw, band); });
}

template <class T>
class BottleneckForward {
 public:
  BottleneckForward(const Choice<T>& choice, Arena& arena)
      : choice_(choice),
        hidden_(choice, arena),
        project_(choice.p.parallel, choice.output_pixels, choice.hidden, choice.p.output_channels,
                 arena) {
    const bool keep = choice.kept && !choice.p.recompute;
    const int64_t expanded = choice.input_pixels * choice.hidden;
    const int64_t filtered = choice.output_pixels * choice.hidden;
    expanded_ = keep ? choice.kept_begin() : arena.take<T>(expanded);
    filtered_ = keep ? expanded_ + expanded : arena.take<T>(filtered);
    projected_ = choice.kept ? choice.kept_projected() : choice.output();
    measured_ = arena.take<T>(2 * choice.p.output_channels);
    coefficients_ = choice.take_coefficients(1, 3, arena);
    output_coefficients_ = choice.take_coefficients(2, 3, arena);
  }

  void run() const {
    const bool measure = choice_.p.training;
    hidden_.run(expanded_, filtered_, measure);
    const LoadActivated<T> load{{filtered_, choice_.norm(1, coefficients_)}};
    project_.run(
        choice_.weight(2), load, [&](int64_t p) { return p * choice_.hidden; }, projected_,
        measure ? measured_ : nullptr);
    if (measure) choice_.set_statistics(2, measured_);
    normalize_output(choice_, projected_, output_coefficients_);
  }

 private:
  Choice<T> choice_;
  Hidden<T> hidden_;
  PointwiseForward<T> project_;
  T* expanded_;
  T* filtered_;
  T* projected_;
  T* measured_;
  T* coefficients_;
  T* output_coefficients_;
};

// Where a strided projection reads the input pixel of each output pixel: elements into the images.
template <class T>
struct StridedPixels {
  const Choice<T>& choice;

  CWK_INLINE int64_t operator()(int64_t pixel) const {
    const int64_t width = choice.output_width, height = choice.output_height;
    const int64_t x = pixel % width, y = pixel / width % height, image = pixel / width / height;
    const BottleneckParams& p = choice.p;
    return ((image * p.height + y * p.stride) * p.width + x * p.stride) * p.input_channels;
  }
};

// The identity: the images themselves, or their projection.
template <class T>
class IdentityForward {
 public:
  IdentityForward(const Choice<T>& choice, Arena& arena)
      : choice_(choice),
        project_(choice.p.parallel, choice.output_pixels, choice.p.input_channels,
                 choice.p.output_channels, arena) {
    projected_ = choice.kept ? choice.kept_projected() : choice.output();
    measured_ = arena.take<T>(2 * choice.p.output_channels);
    coefficients_ = choice.take_coefficients(2, 3, arena);
  }

  void run() const {
    if (!choice_.p.weights[kBottleneckProjection]) return copy();
    T* measured = choice_.p.training ? measured_ : nullptr;
    project_.run(choice_.weight(2), LoadPlain<T>{choice_.input()}, StridedPixels<T>{choice_},
                 projected_, measured);
    if (measured) choice_.set_statistics(2, measured);
    normalize_output(choice_, projected_, coefficients_);
  }

 private:
  void copy() const {
    const int64_t channels = choice_.p.output_channels;
    parallel_for(choice_.p.parallel, band_count(choice_.output_pixels), [&](int64_t index) {
      const Band band(index, choice_.output_pixels);
      const T* from = choice_.input() + band.begin * channels;
      T* to = choice_.output() + band.begin * channels;
      for (int64_t i = 0; i < band.pixels * channels; ++i) to[i] = from[i];
    });
  }

  Choice<T> choice_;
  PointwiseForward<T> project_;
  T* projected_;
  T* measured_;
  T* coefficients_;
};

}  // namespace cwkernels::CWK_ISA
