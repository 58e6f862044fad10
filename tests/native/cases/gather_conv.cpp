#include "../../../csrc/ops/gather_conv.h"

#include <algorithm>

#include "../native.h"

namespace {

using namespace native;
using cwkernels::ConvPass;
using cwkernels::GatherConvParams;
using cwkernels::PixelStrides;

struct Case {
  int64_t images, in_channels, out_channels, height, width, size, stride;
  bool depthwise = false;
  std::vector<int64_t> rows = {0};
  bool shared = false;  // one set of images for all architectures
  int64_t gap = 0;      // elements between pixels
  bool winograd = false;
};

// Values of [architectures, N, H, W, C]; the pixels lie `gap` elements apart, nothing behind the
// last.
struct Images {
  int64_t architectures, images, height, width, channels, gap;

  int64_t column() const { return channels + gap; }
  int64_t size() const { return architectures * images * height * width * column() - gap; }
  PixelStrides strides(bool shared) const {
    const int64_t row = width * column(), image = height * row;
    return {shared ? 0 : images * image, image, row, column()};
  }
  int64_t at(int64_t a, int64_t n, int64_t y, int64_t x, int64_t c) const {
    return ((((architectures == 1 ? 0 : a) * images + n) * height + y) * width + x) * column() + c;
  }
};

int64_t strided(int64_t size, int64_t stride) { return (size - 1) / stride + 1; }

// The case's sizes, and one plain loop over its multiply-adds that serves all passes.
struct Geometry {
  Case c;
  Images input, output;
  int64_t architectures, sets, fan_in;

  explicit Geometry(const Case& wanted) : c(wanted) {
    architectures = static_cast<int64_t>(c.rows.size());
    sets = 1 + *std::max_element(c.rows.begin(), c.rows.end());
    fan_in = c.depthwise ? 1 : c.in_channels;
    input = {c.shared ? 1 : architectures, c.images, c.height, c.width, c.in_channels, c.gap};
    output = {architectures,  c.images, strided(c.height, c.stride), strided(c.width, c.stride),
              c.out_channels, c.gap};
  }

  int64_t weights() const { return sets * c.out_channels * fan_in * c.size * c.size; }

  // f(input index, weight index, output index)
  template <class F>
  void for_each_product(const F& f) const {
    for (int64_t a = 0; a < architectures; ++a) {
      for (int64_t n = 0; n < c.images; ++n) {
        for (int64_t y = 0; y < output.height; ++y) {
          for (int64_t x = 0; x < output.width; ++x) {
            for (int64_t k = 0; k < c.out_channels; ++k) products_of(a, n, y, x, k, f);
          }
        }
      }
    }
  }

  template <class F>
  void products_of(int64_t a, int64_t n, int64_t y, int64_t x, int64_t k, const F& f) const {
    for (int64_t i = 0; i < fan_in; ++i) {
      for (int64_t ky = 0; ky < c.size; ++ky) {
        for (int64_t kx = 0; kx < c.size; ++kx) {
          const int64_t from_y = y * c.stride + ky - c.size / 2;
          const int64_t from_x = x * c.stride + kx - c.size / 2;
          if (from_y < 0 || from_y >= c.height || from_x < 0 || from_x >= c.width) continue;
          const int64_t row = c.rows[static_cast<size_t>(a)] * c.out_channels + k;
          f(input.at(a, n, from_y, from_x, c.depthwise ? k : i),
            ((row * fan_in + i) * c.size + ky) * c.size + kx, output.at(a, n, y, x, k));
        }
      }
    }
  }
};

template <class T>
GatherConvParams params_of(const Geometry& g, const Buffer<int64_t>& rows, ConvPass pass,
                           const Parallel& parallel) {
  GatherConvParams p{};
  p.pass = pass;
  p.depthwise = g.c.depthwise;
  p.winograd = g.c.winograd;
  p.double_precision = sizeof(T) == 8;
  p.rows = p.slots = rows.data();
  p.slot_count = g.sets;
  p.input_strides = g.input.strides(g.c.shared && g.architectures > 1);
  p.output_strides = g.output.strides(false);
  p.architectures = g.architectures;
  p.images = g.c.images;
  p.input_height = g.c.height;
  p.input_width = g.c.width;
  p.input_channels = g.c.in_channels;
  p.output_height = g.output.height;
  p.output_width = g.output.width;
  p.output_channels = g.c.out_channels;
  p.kernel_size = g.c.size;
  p.stride = g.c.stride;
  p.parallel = parallel;
  return p;
}

void call(Isa isa, GatherConvParams& p) {
  const Workspace workspace(CWK_CALL_CPU(isa, gather_conv_workspace, p));
  p.workspace = workspace.data();
  CWK_CALL_CPU(isa, gather_conv, p);
}

// What lies between pixels must stay as it was; it is made 0 so that it compares.
template <class T>
bool zero_gaps(const Images& images, const Buffer<T>& values) {
  bool untouched = true;
  for (int64_t i = 0; i < values.size(); ++i) {
    if (i % images.column() < images.channels) continue;
    untouched &= std::isnan(values[i]);
    values[i] = 0;
  }
  return untouched;
}

template <class T>
void convolve(Isa isa, const Case& c, const std::string& name) {
  const Geometry g(c);
  const Buffer<T> input = random_values<T>(g.input.size(), 1);
  const Buffer<T> output = random_values<T>(g.output.size(), 2);
  const Buffer<T> weight = random_values<T>(g.weights(), 3);
  Buffer<int64_t> rows(g.architectures);
  std::copy(c.rows.begin(), c.rows.end(), rows.data());

  std::vector<double> forward(static_cast<size_t>(output.size()));
  std::vector<double> to_input(static_cast<size_t>(input.size()));
  std::vector<double> to_weight(static_cast<size_t>(weight.size()));
  g.for_each_product([&](int64_t i, int64_t w, int64_t o) {
    forward[static_cast<size_t>(o)] += static_cast<double>(input[i]) * weight[w];
    to_input[static_cast<size_t>(i)] += static_cast<double>(output[o]) * weight[w];
    to_weight[static_cast<size_t>(w)] += static_cast<double>(output[o]) * input[i];
  });

  const double tolerance = c.winograd && sizeof(T) == 4 ? kWinogradTolerance : kTolerance<T>;
  bool gaps = true;
  check<T>(
      name + ", forward", forward,
      [&](const Parallel& parallel) {
        GatherConvParams p = params_of<T>(g, rows, ConvPass::forward, parallel);
        Buffer<T> result(output.size());
        p.input = input.data();
        p.weight = weight.data();
        p.output = result.data();
        call(isa, p);
        gaps &= zero_gaps(g.output, result);
        return result;
      },
      tolerance);
  check<T>(
      name + ", input gradient", to_input,
      [&](const Parallel& parallel) {
        GatherConvParams p = params_of<T>(g, rows, ConvPass::backward_input, parallel);
        Buffer<T> result(input.size());
        p.input = result.data();
        p.weight = weight.data();
        p.output = output.data();
        call(isa, p);
        gaps &= zero_gaps(g.input, result);
        return result;
      },
      tolerance);
  check<T>(
      name + ", weight gradient", to_weight,
      [&](const Parallel& parallel) {
        GatherConvParams p = params_of<T>(g, rows, ConvPass::backward_weight, parallel);
        Buffer<T> result(weight.size());
        p.input = input.data();
        p.output = output.data();
        p.weight_grad = result.data();
        call(isa, p);
        return result;
      },
      tolerance);
  report(name + ", nothing is written between pixels", gaps);
}

const std::vector<Case> kCases = {
    // images, in, out, height, width, size, stride
    {1, 1, 1, 1, 1, 1, 1},
    {2, 3, 16, 9, 7, 3, 1},           // a stem
    {2, 16, 16, 32, 32, 3, 1},        // two bands
    {1, 5, 7, 6, 5, 3, 1},            // channels that fill no vector
    {3, 17, 33, 4, 4, 3, 1},          // one channel more than whole vectors
    {2, 32, 48, 5, 8, 1, 1},          // pixels in one row
    {2, 19, 66, 3, 7, 1, 1},          // the same, odd
    {2, 16, 32, 7, 9, 3, 2},          // planes of odd sizes
    {1, 4, 8, 5, 4, 1, 2},            // planes without taps
    {1, 6, 5, 8, 3, 5, 1},            // taps wider than the image
    {1, 3, 4, 9, 9, 7, 2},            //
    {2, 24, 24, 7, 6, 3, 1, true},    //
    {2, 37, 37, 9, 5, 5, 2, true},    //
    {1, 100, 100, 4, 5, 5, 1, true},  //
    {2, 8, 12, 6, 6, 3, 1, false, {1, 0, 1}},
    {2, 8, 12, 6, 6, 3, 1, false, {2, 0, 1, 2, 0}, true},
    {2, 20, 20, 6, 5, 3, 2, true, {1, 1, 0}, true},
    {2, 5, 18, 6, 5, 3, 1, false, {0, 1}, false, 3},
    {2, 18, 18, 6, 5, 3, 1, true, {1, 0}, true, 2},
    {2, 18, 9, 4, 5, 1, 1, false, {1, 1}, false, 1},
    {1, 16, 16, 32, 32, 3, 1, false, {0}, false, 0, true},
    {4, 64, 64, 8, 8, 3, 1, false, {0}, false, 0, true},
    {3, 32, 48, 9, 11, 3, 1, false, {1, 0, 1}, false, 0, true},
    {3, 16, 32, 13, 7, 3, 1, false, {0, 1}, true, 0, true},
    {4, 19, 21, 10, 10, 3, 1, false, {0}, false, 2, true},
};

const Operation operation("gather_conv", [](Isa isa) {
  for (size_t i = 0; i < kCases.size(); ++i) {
    const std::string name = "gather_conv case " + std::to_string(i);
    convolve<float>(isa, kCases[i], name + ", float");
    convolve<double>(isa, kCases[i], name + ", double");
  }
});

}  // namespace
