#pragma once
#include "../parts/tile.cuh"
#include "conv_norm_pass.cuh"

// How the tiles of conv_norm read its tensors, four channels at a time.
namespace cwkernels {

// The coefficients of all channels of an architecture's input, in shared memory, there after the
// next barrier; null where nothing is normalised.
struct Coefficients {
  const Norm<float>* of;

  __device__ __forceinline__ Coefficients(const ConvNormParams& p, int64_t a, Shared& shared)
      : of(nullptr) {
    if (!p.statistics) return;
    Norm<float>* all = shared.take<Norm<float>>(static_cast<size_t>(p.input_channels));
    const Channels<float> channels = input_channels<float>(p, a);
    for (int64_t c = threadIdx.x; c < p.input_channels; c += blockDim.x) all[c] = channels.norm(c);
    of = all;
  }
  static int64_t bytes(const ConvNormParams& p) {
    return p.statistics ? static_cast<int64_t>(
                              shared_bytes<Norm<float>>(static_cast<size_t>(p.input_channels)))
                        : 0;
  }
};

// Channels of an architecture's input, normalised and rectified.
template <class Stored>
struct InputChannels {
  // Widening takes registers, of which float has left none at two blocks a processor.
  static constexpr int kBatch = sizeof(Stored) < sizeof(float) ? 2 : cwkernels::kBatch;

  const Stored* input;
  const Norm<float>* norm;
  int64_t image, row;  // strides; a column is `channels` away
  int channels;
  bool relu;

  __device__ __forceinline__ InputChannels(const ConvNormParams& p,
                                           const Coefficients& coefficients, int64_t a)
      : input(static_cast<const Stored*>(p.input) +
              a * p.images * p.height * p.width * p.input_channels),
        norm(coefficients.of),
        image(p.height * p.width * p.input_channels),
        row(p.width * p.input_channels),
        channels(static_cast<int>(p.input_channels)),
        relu(p.relu) {}

  __device__ __forceinline__ const Stored* at(int64_t n, int y, int x, int channel) const {
    return input + n * image + y * row + static_cast<int64_t>(x) * channels + channel;
  }
  __device__ __forceinline__ float one(float raw, int channel) const {
    const float value = norm ? norm[channel](raw) : raw;
    return relu ? rectify(value) : value;
  }
  __device__ __forceinline__ Four four(const Stored* from, int channel) const {
    Four values = load_lanes<4>(from);
#pragma unroll
    for (int e = 0; e < 4; ++e) values[e] = one(values[e], channel + e);
    return values;
  }
};

// What the convolution sees: pixel by pixel,
template <class Stored>
struct LoadInput : InputChannels<Stored> {
  using InputChannels<Stored>::InputChannels;

  __device__ __forceinline__ Four operator()(int64_t n, int y, int x, int channel) const {
    return this->four(this->at(n, y, x, channel), channel);
  }
};

// of fewer channels than eight, zeros behind them,
template <class Stored>
struct LoadNarrow : InputChannels<Stored> {
  using InputChannels<Stored>::InputChannels;

  __device__ __forceinline__ Four operator()(int64_t n, int y, int x, int channel) const {
    const Stored* from = this->at(n, y, x, channel);
    Four values{};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (channel + e < this->channels) values[e] = this->one(load_stored(from + e), channel + e);
    }
    return values;
  }
};

// or the average of 2 x 2 pixels, 64 bytes.
template <class Stored>
struct LoadPooled : InputChannels<Stored> {
  static constexpr int kBatch = 2;
  using InputChannels<Stored>::InputChannels;

  __device__ __forceinline__ Four operator()(int64_t n, int y, int x, int channel) const {
    const Stored* from = this->at(n, 2 * y, 2 * x, channel);
    Four values = this->four(from, channel);
    const Four right = this->four(from + this->channels, channel);
    const Four below = this->four(from + this->row, channel);
    const Four diagonal = this->four(from + this->row + this->channels, channel);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      values[e] = ((values[e] + right[e]) + (below[e] + diagonal[e])) * 0.25f;
    }
    return values;
  }
};

// Four channels of a dense tensor as they are. The epilogues behind it need registers for raw
// values and sums, which leaves room for two loads.
template <class Stored>
struct LoadDense {
  static constexpr int kBatch = 2;

  const Stored* from;
  int64_t height, width, channels;

  __device__ __forceinline__ Four operator()(int64_t n, int y, int x, int channel) const {
    return load_lanes<4>(from + ((n * height + y) * width + x) * channels + channel);
  }
};

// The gradient of an architecture's outputs.
template <class Stored>
__device__ __forceinline__ LoadDense<Stored> gradient_of(const ConvNormParams& p,
                                                         const LoadedSize& size, int64_t a) {
  return {static_cast<const Stored*>(p.grad_output) +
              a * p.images * size.output_height * size.output_width * p.output_channels,
          size.output_height, size.output_width, p.output_channels};
}

}  // namespace cwkernels
