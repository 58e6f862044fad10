#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

#include "native.h"

// Plain loops in double, for cases to compare with. Images are dense, [A, N, H, W, C].
namespace native {

using Values = std::vector<double>;

struct Shape {
  int64_t architectures, images, height, width, channels;

  int64_t pixels() const { return images * height * width; }
  int64_t size() const { return architectures * pixels() * channels; }
  Shape with(int64_t new_height, int64_t new_width, int64_t new_channels) const {
    return {architectures, images, new_height, new_width, new_channels};
  }
};

template <class T>
Values values_of(const Buffer<T>& buffer) {
  return Values(buffer.data(), buffer.data() + buffer.size());
}

template <class T>
Buffer<T> buffer_of(const Values& values) {
  Buffer<T> buffer(static_cast<int64_t>(values.size()));
  for (int64_t i = 0; i < buffer.size(); ++i) buffer[i] = static_cast<T>(values[i]);
  return buffer;
}

// [A, 2, C]: mean and biased variance.
Values measure(const Values& images, const Shape& shape);

// A batch norm: scale and shift are [C], or empty for 1 and 0.
struct Norm {
  Values statistics, scale, shift;
  double eps = 1e-5;
  bool training = true;
};

Values normalise(const Values& images, const Shape& shape, const Norm& norm);

struct NormGradient {
  Values input, scale, shift;
};

// In training the statistics are the input's own.
NormGradient normalise_backward(const Values& grad, const Values& images, const Shape& shape,
                                const Norm& norm);

Values rectify(Values images);
// The gradient where the rectified value is positive.
Values rectify_backward(Values grad, const Values& before);

// A convolution [K, C, R, R] of all architectures' images; depthwise [C, 1, R, R].
struct Convolution {
  Shape input;
  int64_t outputs, size, stride;
  bool depthwise = false;

  Shape output() const {
    return input.with((input.height - 1) / stride + 1, (input.width - 1) / stride + 1, outputs);
  }
  int64_t weights() const { return outputs * (depthwise ? 1 : input.channels) * size * size; }
  Values forward(const Values& images, const Values& weight) const;
  Values input_gradient(const Values& grad, const Values& weight) const;
  Values weight_gradient(const Values& grad, const Values& images) const;

 private:
  // f(input index, weight index, output index) for every multiply-add
  template <class F>
  void for_each_product(const F& f) const;
};

// Averages of 2 x 2 pixels, at half the size.
Values pool_blocks(const Values& images, const Shape& shape);
Values pool_blocks_backward(const Values& grad, const Shape& shape);
// Averages of 3 x 3 pixels around each; at the border divided by how many there are, or by 9.
Values pool_around(const Values& images, const Shape& shape, bool count_include_pad);
Values pool_around_backward(const Values& grad, const Shape& shape, bool count_include_pad);

inline void add(Values& to, const Values& from) {
  for (size_t i = 0; i < to.size(); ++i) to[i] += from[i];
}

}  // namespace native
