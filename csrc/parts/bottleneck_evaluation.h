#pragma once
#include "bottleneck.h"

namespace cwkernels::CWK_ISA {

// A bottleneck by known statistics, nothing kept: some images run through all three convolutions, a
// block of hidden channels at a time, and the hidden tensors never leave L2. For 256 channels at
// 4 x 4 pixels, 8 images: planes 128 KB, rectified pixels 40 KB, sums 136 KB.
template <class T>
class BottleneckEvaluation {
 public:
  BottleneckEvaluation(const Choice<T>& choice, Arena& arena)
      : choice_(choice),
        pixels_(choice.p.height * choice.p.width),
        output_pixels_(choice.output_height * choice.output_width),
        images_(max(min(ceil_div(kBandPixels, pixels_), choice.p.images), 1)),
        groups_(ceil_div(choice.p.images, images_)),
        workers_(workers_for(choice.p.parallel, groups_)),
        shape_(choice.p.height, choice.p.width, choice.kernel_size / 2,
               columns_read(choice.output_width, choice.p.stride, choice.kernel_size)),
        vectors_(
            round_up(block_vectors<T>(images_ * shape_.pixels(), choice.hidden), kPanelVectors)),
        expand_(choice.p.input_channels, choice.hidden, arena),
        project_(choice.hidden, choice.p.output_channels, arena),
        pitch_(pitch_of<T>(vectors_ * kLanes<T>)),
        sum_pitch_(pitch_of<T>(choice.p.output_channels)) {
    weights_ = arena.take<T>(choice.kernel_size * choice.kernel_size * expand_.padded);
    for (int64_t place = 0; place < 3; ++place) {
      coefficients_[place] = choice.take_coefficients(place, 3, arena);
    }
    tiles_ = arena.take<T>(workers_ * tile_size());
    planes_ = arena.take<T>(workers_ * plane_size());
    patches_ = arena.take<T>(workers_ * images_ * output_pixels_ * pitch_);
    sums_ = arena.take<T>(workers_ * images_ * output_pixels_ * sum_pitch_);
  }

  void run() {
    expand_.pack(choice_.p.parallel, choice_.weight(0), true);
    project_.pack(choice_.p.parallel, choice_.weight(2), true);
    pack_taps(choice_.weight(1), choice_.kernel_size * choice_.kernel_size, choice_.hidden, false,
              weights_);
    for (int64_t place = 0; place < 3; ++place) {
      norms_[place] = choice_.norm(place, coefficients_[place]);
    }
    parallel_for(choice_.p.parallel, workers_, [&](int64_t w) {
      clear(planes_ + w * plane_size(), plane_size());
      for (int64_t g = w * groups_ / workers_; g < (w + 1) * groups_ / workers_; ++g) group(g, w);
    });
  }

 private:
  int64_t plane_size() const { return vectors_ * images_ * shape_.pixels() * kLanes<T>; }
  // A band's panel of the expanded, or an image's vector of the filtered.
  int64_t tile_size() const {
    return max(kBandPixels * kPanelWidth<T>, output_pixels_ * kLanes<T>);
  }

  void group(int64_t index, int64_t w) const {
    const int64_t first = index * images_, images = min(images_, choice_.p.images - first);
    const int64_t step = vectors_ * kLanes<T>;
    for (int64_t c = 0; c < choice_.hidden; c += step) {
      const int64_t channels = min(step, choice_.hidden - c);
      expand(first, images, c, channels, w);
      filter(images, c, channels, w);
      project(images, c, channels, w);
    }
    finish(first, images, w);
  }

  // Channels [c, c + channels) of the expanded, rectified, into planes.
  void expand(int64_t first, int64_t images, int64_t c, int64_t channels, int64_t w) const {
    const int64_t depth = choice_.p.input_channels;
    const T* input = choice_.input() + first * pixels_ * depth;
    T* tile = tiles_ + w * tile_size();
    for (int64_t b = 0; b < band_count(images * pixels_); ++b) {
      const Band band(b, images * pixels_);
      for (int64_t n = 0; n < channels; n += kPanelWidth<T>) {
        const int64_t panel = (c + n) / kPanelWidth<T>, width = expand_.width(panel);
        multiply(input + band.begin * depth, depth, band.pixels, depth, expand_, panel, 0, tile,
                 kPanelWidth<T>, false);
        for (int64_t v = 0; v < width; v += kLanes<T>) {
          activate_plane(tile + v, band, c + n + v,
                         planes_ + w * plane_size() + (n + v) * images_ * shape_.pixels());
        }
      }
    }
  }

  // One vector of channels of a band, to the planes of its images.
  CWK_FLATTEN void activate_plane(const T* tile, const Band& band, int64_t c, T* planes) const {
    const auto norm = norms_[0].channel(c);
    const int64_t width = shape_.width;
    int64_t x = band.begin % width, y = band.begin / width % shape_.height;
    T* plane = planes + band.begin / pixels_ * shape_.pixels() * kLanes<T>;
    T* row = plane + shape_.at(y, 0) * kLanes<T>;
    for (int64_t p = 0; p < band.pixels; ++p) {
      store(row + x * kLanes<T>, rectify<T>(norm(load(tile + p * kPanelWidth<T>))));
      if (++x < width) continue;
      x = 0;
      if (++y == shape_.height) {
        y = 0;
        plane += shape_.pixels() * kLanes<T>;
      }
      row = plane + shape_.at(y, 0) * kLanes<T>;
    }
  }

  // The planes through the depthwise convolution, rectified, to pixels of channels.
  void filter(int64_t images, int64_t c, int64_t channels, int64_t w) const {
    T* tile = tiles_ + w * tile_size();
    for (int64_t v = 0; v < channels; v += kLanes<T>) {
      for (int64_t image = 0; image < images; ++image) {
        const T* plane =
            planes_ + w * plane_size() + (v * images_ + image * kLanes<T>)*shape_.pixels();
        with_kernel_size(choice_.kernel_size, [&](auto r) {
          (choice_.p.stride == 1 ? filter_plane<T, r.value, 1>
                                 : filter_plane<T, r.value, 2>)(plane, shape_.columns,
                                                                weights_ + c + v, expand_.padded,
                                                                choice_.output_height,
                                                                choice_.output_width, tile);
        });
        activate_pixels(tile, c + v,
                        patches_ + (w * images_ + image) * output_pixels_ * pitch_ + v);
      }
    }
  }

  CWK_FLATTEN void activate_pixels(const T* tile, int64_t c, T* patch) const {
    const auto norm = norms_[1].channel(c);
    const int64_t pixels = output_pixels_, pitch = pitch_;
    for (int64_t p = 0; p < pixels; ++p) {
      store(patch + p * pitch, rectify<T>(norm(load(tile + p * kLanes<T>))));
    }
  }

  void project(int64_t images, int64_t c, int64_t channels, int64_t w) const {
    const T* patch = patches_ + w * images_ * output_pixels_ * pitch_;
    T* sums = sums_ + w * images_ * output_pixels_ * sum_pitch_;
    for (int64_t panel = 0; panel < project_.count(); ++panel) {
      multiply(patch, pitch_, images * output_pixels_, channels, project_, panel, c,
               sums + panel * kPanelWidth<T>, sum_pitch_, c > 0);
    }
  }

  CWK_FLATTEN void finish(int64_t first, int64_t images, int64_t w) const {
    const int64_t channels = choice_.p.output_channels, begin = first * output_pixels_ * channels;
    const T* sums = sums_ + w * images_ * output_pixels_ * sum_pitch_;
    const T* input = choice_.residual ? choice_.input() + begin : nullptr;
    T* output = choice_.output() + begin;
    for (int64_t p = 0; p < images * output_pixels_; ++p) {
      for (int64_t c = 0; c < channels; c += kLanes<T>) {
        Vector<T> value = norms_[2](load(sums + p * sum_pitch_ + c), c);
        if (input) value += load_channels(input + p * channels + c, channels - c);
        store_channels(output + p * channels + c, value, channels - c);
      }
    }
  }

  Choice<T> choice_;
  int64_t pixels_, output_pixels_, images_, groups_, workers_;
  PlaneShape shape_;
  int64_t vectors_;
  Panels<T> expand_, project_;
  int64_t pitch_, sum_pitch_;
  T* weights_;
  T* coefficients_[3];
  Norm<T> norms_[3];
  T* tiles_;
  T* planes_;
  T* patches_;
  T* sums_;
};

}  // namespace cwkernels::CWK_ISA
