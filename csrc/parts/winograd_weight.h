#pragma once
#include "conv_dense_weight.h"
#include "winograd.h"

// The gradient of 3x3 weights by F(4x4, 3x3): sums[frequency][C][K] over tiles of inputs times
// gradients, each transformed; the sums are transformed back once, at the end. For one tile of 16
// pixels, in vectors of 16 floats: 144 operations for each vector of C, 80 for each of K, 36 C FMAs
// for each of K (directly: 144 C).
namespace cwkernels::CWK_ISA {

// The sums pass through registers once a tile block: at 64 x 64 channels they are 590 KB, 16 bytes
// read and written a cycle for 16 tiles. 32 tiles halve that but are worth it only where both
// transformed sides, 18 KB a tile at 64 + 64 channels, leave the sums in L2.
constexpr int64_t kWeightTileBlock = 32;
constexpr int64_t kWeightTileBytes = 320 << 10;

template <class T>
class WinogradWeightGradient {
 public:
  // One source; the targets are convolutions that read it.
  explicit WinogradWeightGradient(const WinogradShape& shape)
      : shape_(shape), outputs_(shape.targets * shape.outputs) {
    const int64_t bytes = kFrequencies * (shape.channels + outputs_) * int64_t{sizeof(T)};
    tiles_ = bytes * kWeightTileBlock <= kWeightTileBytes ? kWeightTileBlock : kWeightTileBlock / 2;
    input_stride_ = tiles_ * shape.channels + kFrequencyPad<T>;
    sum_stride_ = shape.channels * outputs_ + kFrequencyPad<T>;
    gradient_stride_ = tiles_ * outputs_ + kFrequencyPad<T>;
  }

  // Elements of the sums, one array for each worker.
  int64_t partial_size() const { return kFrequencies * sum_stride_; }

  int64_t scratch_size() const { return kFrequencies * (input_stride_ + gradient_stride_); }

  // input is [images][patch_rows][patch_columns][channels], gradients[target] the same with
  // `outputs` channels and the same zeros around. `add` to what lies in `partial`, or begin it.
  void accumulate(const T* input, const T* const* gradients, int64_t images, bool add, T* partial,
                  T* scratch) const {
    T* transformed = scratch + kFrequencies * input_stride_;
    const int64_t tiles = images * shape_.tiles_per_image();
    for (int64_t first = 0; first < tiles; first += tiles_) {
      const int64_t count = min(tiles_, tiles - first);
      transform_block(input, gradients, first, count, scratch, transformed);
      multiply(scratch, transformed, count, add || first > 0, partial);
    }
  }

  // Jobs that share the end, in any order.
  int64_t finish_jobs() const { return shape_.channels / kLanes<T> * (outputs_ / kLanes<T>); }

  // Adds up the partial sums of all chunks (at least one) in their order and writes the gradients
  // [outputs][channels][3][3] of each target, or adds to them.
  CWK_FLATTEN void finish(const T* partials, int64_t chunk_stride, int64_t chunks, bool add,
                          int64_t job, T* const* gradients) const {
    const int64_t blocks = shape_.channels / kLanes<T>;
    const int64_t channel = job % blocks * kLanes<T>, output = job / blocks * kLanes<T>;
    // [channel][tap] of kLanes outputs.
    T square[kLanes<T> * kWeightTaps][kLanes<T>];
    for (int64_t c = 0; c < kLanes<T>; ++c) {
      const auto sum = [&](int f) {
        const T* at = partials + f * sum_stride_ + (channel + c) * outputs_ + output;
        Vector<T> total = load(at);
        for (int64_t chunk = 1; chunk < chunks; ++chunk) total += load(at + chunk * chunk_stride);
        return total;
      };
      transform_sums<T>(sum, [&](int t, Vector<T> v) { store(square[c * kWeightTaps + t], v); });
    }
    T* gradient = gradients[output / shape_.outputs] +
                  (output % shape_.outputs * shape_.channels + channel) * kWeightTaps;
    for (int64_t first = 0; first < kLanes<T> * kWeightTaps; first += kLanes<T>) {
      Vector<T> rows[kLanes<T>];
      unroll<kLanes<T>>([&](auto i) { rows[i] = load(square[first + i]); });
      transpose<T>(rows);
      unroll<kLanes<T>>([&](auto i) {
        T* to = gradient + i * shape_.channels * kWeightTaps + first;
        store(to, add ? load(to) + rows[i] : rows[i]);
      });
    }
  }

 private:
  // Both sides of a tile block.
  CWK_FLATTEN void transform_block(const T* input, const T* const* gradients, int64_t first,
                                   int64_t count, T* inputs, T* transformed) const {
    const int64_t row = shape_.patch_columns * shape_.channels;
    const int64_t gradient_row = shape_.patch_columns * shape_.outputs;
    WinogradTile tile(shape_, first);
    for (int64_t t = 0; t < count; ++t, tile.advance(shape_)) {
      const int64_t corner = tile.pixel(shape_);
      const T* patch = input + corner * shape_.channels;
      for (int64_t c = 0; c < shape_.channels; c += kLanes<T>) {
        const auto value = [&](int i, int j) {
          return load(patch + i * row + j * shape_.channels + c);
        };
        transform_inputs<T>(value, inputs + t * shape_.channels + c, input_stride_);
      }
      T* to = transformed + t * outputs_;
      for (int64_t target = 0; target < shape_.targets; ++target) {
        // A tile's outputs begin one row and column inside its inputs.
        const T* gradient =
            gradients[target] + (corner + shape_.patch_columns + 1) * shape_.outputs;
        for (int64_t k = 0; k < shape_.outputs; k += kLanes<T>, to += kLanes<T>) {
          const auto value = [&](int i, int j) {
            return load(gradient + i * gradient_row + j * shape_.outputs + k);
          };
          transform_gradients<T>(value, to, gradient_stride_);
        }
      }
    }
  }

  void multiply(const T* inputs, const T* gradients, int64_t count, bool add, T* partial) const {
    for (int f = 0; f < kFrequencies; ++f) {
      int64_t k = 0;
      for (; k + 2 * kLanes<T> <= outputs_; k += 2 * kLanes<T>) {
        multiply_panel<2>(inputs, gradients + k, count, add, partial + k);
      }
      if (k < outputs_) multiply_panel<1>(inputs, gradients + k, count, add, partial + k);
      inputs += input_stride_;
      gradients += gradient_stride_;
      partial += sum_stride_;
    }
  }

  // 16 channels x 1 vector or 8 x 2 in registers over the tiles of a block.
  template <int V>
  CWK_FLATTEN void multiply_panel(const T* inputs, const T* gradients, int64_t count, bool add,
                                  T* partial) const {
    constexpr int B = kRunBlock<V> < kLanes<T> ? kRunBlock<V> : kLanes<T>;
    for (int64_t c = 0; c < shape_.channels; c += B) {
      Vector<T> acc[B][V] = {};
      const T* from = inputs + c;
      const T* to = gradients;
      for (int64_t t = 0; t < count; ++t, from += shape_.channels, to += outputs_) {
        Vector<T> gradient[V];
        unroll<V>([&](auto v) { gradient[v] = load(to + v * kLanes<T>); });
        unroll<B>([&](auto b) {
          const Vector<T> value = broadcast(from[b]);
          unroll<V>([&](auto v) { acc[b][v] += value * gradient[v]; });
        });
      }
      unroll<B>([&](auto b) {
        unroll<V>([&](auto v) {
          T* sum = partial + (c + b) * outputs_ + v * kLanes<T>;
          store(sum, add ? load(sum) + acc[b][v] : acc[b][v]);
        });
      });
    }
  }

  WinogradShape shape_;
  int64_t outputs_, tiles_, input_stride_, gradient_stride_, sum_stride_;
};

}  // namespace cwkernels::CWK_ISA
