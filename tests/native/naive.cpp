#include "naive.h"

namespace native {

Values measure(const Values& images, const Shape& s) {
  Values result(static_cast<size_t>(s.architectures * 2 * s.channels));
  const double count = static_cast<double>(s.pixels());
  for (int64_t a = 0; a < s.architectures; ++a) {
    for (int64_t c = 0; c < s.channels; ++c) {
      const double* first = images.data() + a * s.pixels() * s.channels + c;
      double mean = 0, squares = 0;
      for (int64_t p = 0; p < s.pixels(); ++p) mean += first[p * s.channels] / count;
      for (int64_t p = 0; p < s.pixels(); ++p) {
        squares += (first[p * s.channels] - mean) * (first[p * s.channels] - mean);
      }
      result[(a * 2) * s.channels + c] = mean;
      result[(a * 2 + 1) * s.channels + c] = squares / count;
    }
  }
  return result;
}

namespace {

// f(index of the value, channel, mean, 1 / deviation, scale)
template <class F>
void for_each_value(const Shape& s, const Norm& norm, int64_t a, const F& f) {
  for (int64_t p = 0; p < s.pixels(); ++p) {
    for (int64_t c = 0; c < s.channels; ++c) {
      const double variance = norm.statistics[(a * 2 + 1) * s.channels + c];
      f((a * s.pixels() + p) * s.channels + c, c, norm.statistics[a * 2 * s.channels + c],
        1 / std::sqrt(variance + norm.eps), norm.scale.empty() ? 1 : norm.scale[c]);
    }
  }
}

}  // namespace

Values normalise(const Values& images, const Shape& s, const Norm& norm) {
  Values result(images.size());
  for (int64_t a = 0; a < s.architectures; ++a) {
    for_each_value(s, norm, a, [&](int64_t i, int64_t c, double mean, double rate, double scale) {
      result[i] = (images[i] - mean) * rate * scale + (norm.shift.empty() ? 0 : norm.shift[c]);
    });
  }
  return result;
}

NormGradient normalise_backward(const Values& grad, const Values& images, const Shape& s,
                                const Norm& norm) {
  NormGradient result{Values(images.size()), Values(s.channels), Values(s.channels)};
  const double count = static_cast<double>(s.pixels());
  for (int64_t a = 0; a < s.architectures; ++a) {
    Values sum(s.channels), product(s.channels);
    for_each_value(s, norm, a, [&](int64_t i, int64_t c, double mean, double rate, double) {
      sum[c] += grad[i];
      product[c] += grad[i] * (images[i] - mean) * rate;
    });
    add(result.scale, product);
    add(result.shift, sum);
    for_each_value(s, norm, a, [&](int64_t i, int64_t c, double mean, double rate, double scale) {
      const double normal = (images[i] - mean) * rate;
      const double through = norm.training ? (sum[c] + normal * product[c]) / count : 0;
      result.input[i] = scale * rate * (grad[i] - through);
    });
  }
  return result;
}

Values rectify(Values images) {
  for (double& value : images) value = value > 0 ? value : 0;
  return images;
}

Values rectify_backward(Values grad, const Values& before) {
  for (size_t i = 0; i < grad.size(); ++i) grad[i] = before[i] > 0 ? grad[i] : 0;
  return grad;
}

template <class F>
void Convolution::for_each_product(const F& f) const {
  const Shape to = output();
  const int64_t all = input.architectures * input.images, taps = size * size;
  for (int64_t o = 0; o < all * to.height * to.width; ++o) {
    const int64_t x = o % to.width, y = o / to.width % to.height, n = o / to.width / to.height;
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t from_y = y * stride + t / size - size / 2;
      const int64_t from_x = x * stride + t % size - size / 2;
      if (from_y < 0 || from_y >= input.height || from_x < 0 || from_x >= input.width) continue;
      const int64_t i = ((n * input.height + from_y) * input.width + from_x) * input.channels;
      for (int64_t k = 0; k < outputs; ++k) {
        if (depthwise) f(i + k, k * taps + t, o * outputs + k);
        for (int64_t c = 0; !depthwise && c < input.channels; ++c) {
          f(i + c, (k * input.channels + c) * taps + t, o * outputs + k);
        }
      }
    }
  }
}

Values Convolution::forward(const Values& images, const Values& weight) const {
  Values result(output().size());
  for_each_product([&](int64_t i, int64_t w, int64_t o) { result[o] += images[i] * weight[w]; });
  return result;
}

Values Convolution::input_gradient(const Values& grad, const Values& weight) const {
  Values result(input.size());
  for_each_product([&](int64_t i, int64_t w, int64_t o) { result[i] += grad[o] * weight[w]; });
  return result;
}

Values Convolution::weight_gradient(const Values& grad, const Values& images) const {
  Values result(weights());
  for_each_product([&](int64_t i, int64_t w, int64_t o) { result[w] += grad[o] * images[i]; });
  return result;
}

namespace {

// f(index of a pixel's value, index of a block's value)
template <class F>
void for_each_in_block(const Shape& s, const F& f) {
  const Shape to = s.with(s.height / 2, s.width / 2, s.channels);
  for (int64_t o = 0; o < to.size(); ++o) {
    const int64_t c = o % s.channels, x = o / s.channels % to.width;
    const int64_t y = o / s.channels / to.width % to.height;
    const int64_t n = o / s.channels / to.width / to.height;
    for (int64_t i = 0; i < 4; ++i) {
      f(((n * s.height + 2 * y + i / 2) * s.width + 2 * x + i % 2) * s.channels + c, o);
    }
  }
}

// f(index of a neighbour's value, index of a pixel's value, what to multiply by)
template <class F>
void for_each_around(const Shape& s, bool count_include_pad, const F& f) {
  for (int64_t o = 0; o < s.size(); ++o) {
    const int64_t c = o % s.channels, x = o / s.channels % s.width;
    const int64_t y = o / s.channels / s.width % s.height;
    const int64_t n = o / s.channels / s.width / s.height;
    const auto inside = [](int64_t at, int64_t size) {
      return 1 + (at > 0 ? 1 : 0) + (at + 1 < size ? 1 : 0);
    };
    const int64_t count = count_include_pad ? 9 : inside(y, s.height) * inside(x, s.width);
    for (int64_t i = 0; i < 9; ++i) {
      const int64_t at_y = y + i / 3 - 1, at_x = x + i % 3 - 1;
      if (at_y < 0 || at_y >= s.height || at_x < 0 || at_x >= s.width) continue;
      f(((n * s.height + at_y) * s.width + at_x) * s.channels + c, o,
        1 / static_cast<double>(count));
    }
  }
}

}  // namespace

Values pool_blocks(const Values& images, const Shape& s) {
  Values result(s.with(s.height / 2, s.width / 2, s.channels).size());
  for_each_in_block(s, [&](int64_t i, int64_t o) { result[o] += images[i] / 4; });
  return result;
}

Values pool_blocks_backward(const Values& grad, const Shape& s) {
  Values result(s.size());
  for_each_in_block(s, [&](int64_t i, int64_t o) { result[i] += grad[o] / 4; });
  return result;
}

Values pool_around(const Values& images, const Shape& s, bool count_include_pad) {
  Values result(s.size());
  for_each_around(s, count_include_pad,
                  [&](int64_t i, int64_t o, double by) { result[o] += images[i] * by; });
  return result;
}

Values pool_around_backward(const Values& grad, const Shape& s, bool count_include_pad) {
  Values result(s.size());
  for_each_around(s, count_include_pad,
                  [&](int64_t i, int64_t o, double by) { result[i] += grad[o] * by; });
  return result;
}

}  // namespace native
