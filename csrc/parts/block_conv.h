#pragma once
#include "block.h"
#include "conv_dense_weight.h"

// Direct dense convolutions of blocks that lie as patches: the kernels of conv_dense.h and
// conv_dense_weight.h, with the load and what follows the store left to the caller.
namespace cwkernels::CWK_ISA {

// A convolution of images [height, width, channels] to [output_height, output_width, outputs].
struct ConvShape {
  int64_t height, width, channels;
  int64_t output_height, output_width, outputs;
  int64_t kernel_size, stride;
};

CWK_INLINE ConvShape make_conv(int64_t height, int64_t width, int64_t channels, int64_t outputs,
                               int64_t kernel_size, int64_t stride) {
  const int64_t output_height = (height - 1) / stride + 1, output_width = (width - 1) / stride + 1;
  return {height, width, channels, output_height, output_width, outputs, kernel_size, stride};
}

CWK_INLINE GatherConvParams conv_params(const ConvShape& shape, ConvPass pass) {
  GatherConvParams p{};
  p.pass = pass;
  p.input_height = shape.height;
  p.input_width = shape.width;
  p.input_channels = shape.channels;
  p.output_height = shape.output_height;
  p.output_width = shape.output_width;
  p.output_channels = shape.outputs;
  p.kernel_size = shape.kernel_size;
  p.stride = shape.stride;
  return p;
}

// Forward, or the gradient of the input: the patch holds the source of the pass, the target is
// dense images.
template <class T>
class BlockConvolution {
 public:
  BlockConvolution(const ConvShape& shape, ConvPass pass, const BlockShape& patch, Arena& arena)
      : p_(conv_params(shape, pass)), patch_(patch) {
    const bool forward = pass == ConvPass::forward;
    outputs_ = forward ? shape.outputs : shape.channels;
    target_width_ = forward ? shape.output_width : shape.width;
    target_pixels_ =
        forward ? shape.output_height * shape.output_width : shape.height * shape.width;
    padded_ = round_up(outputs_, kLanes<T>);
    panels_ = ceil_div(padded_, kPanelWidth<T>);
    if (forward) {
      planes_[plane_count_++] = forward_plane(p_);
    } else {
      for (int64_t row = 0; row < min(shape.stride, shape.height); ++row) {
        for (int64_t column = 0; column < min(shape.stride, shape.width); ++column) {
          planes_[plane_count_++] = backward_plane(p_, row, column);
        }
      }
    }
    for (int i = 0; i < plane_count_; ++i) {
      const int64_t pixels = patch.images * planes_[i].rows * planes_[i].columns;
      const bool dense = planes_[i].source_step == 1 && planes_[i].columns == patch.columns &&
                         planes_[i].rows == patch.rows;
      lists_[i] = {arena.take<int64_t>(pixels), arena.take<int64_t>(pixels), 0,
                   dense ? patch.channels : 0};
      packed_offset_[i] = packed_size_;
      packed_size_ += planes_[i].taps() * patch.channels * padded_;
    }
  }

  // Writes the lists of pixels; once, before anything runs.
  void prepare() const {
    for (int i = 0; i < plane_count_; ++i) {
      const Plane& plane = planes_[i];
      int64_t n = 0;
      for (int64_t image = 0; image < patch_.images; ++image) {
        for (int64_t row = 0; row < plane.rows; ++row) {
          for (int64_t column = 0; column < plane.columns; ++column, ++n) {
            lists_[i].source[n] =
                image * patch_.image_size() + patch_.origin() +
                (row * patch_.columns + column) * plane.source_step * patch_.channels;
            lists_[i].target[n] = (image * target_pixels_ +
                                   (plane.target_row + row * plane.target_step) * target_width_ +
                                   plane.target_column + column * plane.target_step) *
                                  outputs_;
          }
        }
      }
    }
  }

  int64_t packed_size() const { return packed_size_; }
  int64_t pack_tasks() const { return plane_count_ * panels_; }

  // One task of packing a row of a bank, weight[K][C][R][R].
  void pack(const T* weight, int64_t task, T* packed) const {
    const int64_t panel = task % panels_;
    const int plane = static_cast<int>(task / panels_);
    pack_panel(p_, planes_[plane], weight, patch_.channels, outputs_, panel * kPanelWidth<T>,
               width(panel), packed + offset(plane, panel));
  }

  // Convolves `images` images; accumulates into the target or overwrites it.
  CWK_FLATTEN void run(const T* packed, const T* patch, int64_t images, T* target,
                       bool accumulate) const {
    for (int i = 0; i < plane_count_; ++i) {
      const Plane& plane = planes_[i];
      PixelList list = lists_[i];
      list.count = images * plane.rows * plane.columns;
      const int64_t step = patch_.channels;
      TapRows rows{plane.tap_rows, plane.tap_columns, step, {}};
      for (int64_t r = 0; r < rows.count; ++r) {
        rows.offsets[r] = ((plane.first_row + r) * patch_.columns + plane.first_column) * step;
      }
      for (int64_t panel = 0; panel < panels_; ++panel) {
        const int64_t first = panel * kPanelWidth<T>;
        const int64_t channels = min(outputs_ - first, kPanelWidth<T>);
        const T* weights = packed + offset(i, panel);
        if (width(panel) == kPanelWidth<T>) {
          dense_band<T, kPanelVectors, 1>(list, patch, target + first, rows, weights, channels,
                                          accumulate);
        } else {
          dense_band<T, 1, 2>(list, patch, target + first, rows, weights, channels, accumulate);
        }
      }
    }
  }

 private:
  int64_t width(int64_t panel) const {
    return min(kPanelWidth<T>, padded_ - panel * kPanelWidth<T>);
  }

  int64_t offset(int plane, int64_t panel) const {
    return packed_offset_[plane] + panel * kPanelWidth<T> * planes_[plane].taps() * patch_.channels;
  }

  GatherConvParams p_;
  BlockShape patch_;
  Plane planes_[4];
  PixelList lists_[4];
  int64_t packed_offset_[4];
  int plane_count_ = 0;
  int64_t packed_size_ = 0;
  int64_t outputs_, target_width_, target_pixels_, padded_, panels_;
};

// The gradient of the weights, summed over blocks into one partial result for each worker.
template <class T>
class BlockWeightGradient {
 public:
  // `source` and `target`: patches of the input and of the gradient of the output.
  BlockWeightGradient(const ConvShape& shape, const BlockShape& source, const BlockShape& target,
                      Arena& arena)
      : shape_(shape),
        source_(source),
        target_(target),
        padded_(round_up(shape.outputs, kLanes<T>)) {
    const int64_t pixels = source.images * shape.output_height * shape.output_width;
    list_ = {arena.take<int64_t>(pixels), arena.take<int64_t>(pixels), 0, 0};
  }

  void prepare() const {
    const int64_t inset = source_.border - shape_.kernel_size / 2;
    int64_t n = 0;
    for (int64_t image = 0; image < source_.images; ++image) {
      for (int64_t y = 0; y < shape_.output_height; ++y) {
        for (int64_t x = 0; x < shape_.output_width; ++x, ++n) {
          const int64_t row = inset + y * shape_.stride, column = inset + x * shape_.stride;
          list_.source[n] =
              image * source_.image_size() + (row * source_.columns + column) * source_.channels;
          list_.target[n] = image * target_.image_size() + target_.origin() +
                            (y * target_.columns + x) * target_.channels;
        }
      }
    }
  }

  // Elements of a partial result, [tap][c][padded k]; it begins as zeros.
  int64_t partial_size() const {
    return shape_.kernel_size * shape_.kernel_size * shape_.channels * padded_;
  }

  void accumulate(const T* source, const T* target, int64_t images, T* partial) const {
    PixelList list = list_;
    list.count = images * shape_.output_height * shape_.output_width;
    for (int64_t first = 0; first < padded_; first += kPanelWidth<T>) {
      if (padded_ - first >= kPanelWidth<T>) {
        sum_panel<kPanelVectors>(list, source, target + first, partial + first);
      } else {
        sum_panel<1>(list, source, target + first, partial + first);
      }
    }
  }

  WeightPartials<T> partials(const T* data, int64_t chunks, int64_t chunk_stride) const {
    return {data,
            chunks,
            chunk_stride,
            padded_,
            shape_.channels,
            shape_.outputs,
            shape_.kernel_size * shape_.kernel_size};
  }

 private:
  template <int V>
  CWK_FLATTEN void sum_panel(const PixelList& list, const T* from, const T* to, T* partial) const {
    const int64_t channels = shape_.channels, run = shape_.kernel_size * channels;
    const bool rows =
        kWeightRows && shape_.stride == 1 && shape_.kernel_size == kRowTaps && run != kStemRun;
    for (int64_t r = 0; r < shape_.kernel_size; ++r) {
      const T* start = from + r * source_.columns * channels;
      T* sums = partial + r * run * padded_;
      if (rows) {
        weight_rows<T, V>(list, shape_.output_width, start, to, channels, channels, sums, padded_);
      } else {
        weight_run<T, V>(list, start, to, run, sums, padded_);
      }
    }
  }

  ConvShape shape_;
  BlockShape source_, target_;
  PixelList list_;
  int64_t padded_;
};

}  // namespace cwkernels::CWK_ISA
