#pragma once
#include "conv_norm_weight.cuh"
#include "reduction_conv.h"

// Both convolutions of a residual reduction in one launch each way, in the tiles of conv_norm: a
// launch's blocks are shared out between the two, and of the input's gradient a tile takes both.
namespace cwkernels {

struct ReductionConvTile {
  ConvNormTile conv, shortcut;
  int64_t conv_blocks;
};

// Two blocks on a processor as conv_norm's, but for bf16, whose widening would spill.
template <class Split, class Precision>
constexpr int kPairResident =
    sizeof(typename Precision::Stored) < sizeof(float) ? 1 : kForwardResident<Split, Precision>;

// Grid: (blocks of both, architectures). 16 to 32 channels at batch 256 and 32 x 32: the 3 x 3 taps
// are 0.60 G multiply-adds in 264 blocks, the shortcut's 0.034 G in as many, which start as the
// first ones end. Both read the input's 16.8 MB, the second time out of L2.
template <class Precision, class Split>
__global__ void __launch_bounds__(Split::kThreads, kPairResident<Split, Precision>)
    reduction_conv_tile(const __grid_constant__ ReductionConvTile t) {
  using Stored = typename Precision::Stored;
  wait_for_previous();
  allow_next();
  if (blockIdx.x < t.conv_blocks) {
    convolve_tiles<Precision, Split, LoadInput<Stored>>(t.conv, blockIdx.x);
  } else {
    convolve_tiles<Precision, Split, LoadPooled<Stored>>(t.shortcut, blockIdx.x - t.conv_blocks);
  }
}
static_assert(256LL * 16 * 16 * 32 * 16 * 9 == 301989888 && 256 * 32 * 32 * 16 * 4 == 16777216);

// --- The weights' gradients ----------------------------------------------------------------------

struct ReductionConvWeight {
  ConvNormWeight conv, shortcut;
  int64_t conv_blocks;
};

template <class Precision, class Split, class Pointwise>
__global__ void __launch_bounds__(Split::kThreads, Split::resident(Precision::kProducts))
    reduction_conv_weight_tile(const __grid_constant__ ReductionConvWeight t) {
  using Stored = typename Precision::Stored;
  static_assert(Split::kThreads == Pointwise::kThreads);
  wait_for_previous();
  allow_next();
  if (blockIdx.x < t.conv_blocks) {
    multiply_weight_tiles<Precision, Split, LoadInput<Stored>>(t.conv, blockIdx.x);
  } else {
    multiply_weight_tiles<Precision, Pointwise, LoadPooled<Stored>>(t.shortcut,
                                                                    blockIdx.x - t.conv_blocks);
  }
}

// --- The input's gradient ------------------------------------------------------------------------

// `shortcut` has the tiles of `conv`, of one tap. The sums of both weights' gradients ride along.
struct ReductionConvGradient {
  ConvNormTile conv, shortcut;
  int64_t tile_blocks, conv_sum_blocks;
  WeightSum<float> conv_sum, shortcut_sum;
};
static_assert(sizeof(ReductionConvGradient) <= 4096, "a launch's parameters");

// Of an average, each of whose four pixels has a quarter.
template <class Stored>
struct LoadQuarter {
  static constexpr int kBatch = LoadDense<Stored>::kBatch;

  LoadDense<Stored> whole;

  __device__ __forceinline__ Four operator()(int64_t n, int y, int x, int channel) const {
    Four four = whole(n, y, x, channel);
#pragma unroll
    for (int e = 0; e < 4; ++e) four[e] *= 0.25f;
    return four;
  }
};

// Clears the sums of what the convolution's ReLU took away, in hand_out's order: input(pixel) is
// where an output's pixel of the input begins, null if there is none.
template <class Split, class Input>
__device__ __forceinline__ void mask_sums(typename Split::Sums& sums, const Input& input) {
  const int g = lane() / 4, n = Split::output() + lane() % 4 * 2;
#pragma unroll
  for (int i = 0; i < Split::kM; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto* pixel = input(Split::pixel() + i * kMmaRows + half * 8 + g);
      if (!pixel) continue;
#pragma unroll
      for (int j = 0; j < Split::kN; ++j) {
        const Lanes<float, 2> raw = load_lanes<2>(pixel + n + j * kMmaColumns);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (raw[e] <= 0.0f) sums.values[i][j][half * 2 + e] = 0.0f;
        }
      }
    }
  }
}

// A tile's sums are those of the convolution, masked, and the shortcut's on top: the gradient is
// written once, and no pass adds two of 16.8 MB. Persistent blocks go through the tiles of the four
// parities of pixels, which get 1, 2, 2 and 4 of the 9 taps.
template <class Precision, class Split>
__global__ void __launch_bounds__(Split::kThreads, Split::resident(Precision::kProducts))
    reduction_conv_gradient_tile(const __grid_constant__ ReductionConvGradient t) {
  using Stored = typename Precision::Stored;
  static_assert(Split::kThreads == kWeightSumThreads);
  wait_for_previous();
  allow_next();
  if (blockIdx.x >= t.tile_blocks) {
    const int64_t block = blockIdx.x - t.tile_blocks;
    if (blockIdx.y != 0) return;
    if (block < t.conv_sum_blocks) {
      sum_weights(t.conv_sum, block);
    } else {
      sum_weights(t.shortcut_sum, block - t.conv_sum_blocks);
    }
    return;
  }
  const ConvNormTile& conv = t.conv;
  const ConvNormPlace<Split> at(conv, blockIdx.x);
  const int output = static_cast<int>(at.chunk) * Split::kOutputs;
  Shared shared;
  float* source = shared.take<float>(static_cast<size_t>(conv.source_values));
  float* weights = shared.take<float>(static_cast<size_t>(conv.weight_values));
  const LoadDense<Stored> load = gradient_of<Stored>(conv.p, conv.size, at.architecture);
  const LoadQuarter<Stored> quarter{
      gradient_of<Stored>(t.shortcut.p, t.shortcut.size, at.architecture)};
  const int height = static_cast<int>(conv.size.output_height);
  const int width = static_cast<int>(conv.size.output_width);
  const int64_t image = conv.p.height * conv.p.width * conv.outputs;
  const int64_t first = at.architecture * conv.p.images * image + output;
  const int64_t tiles = conv.all.tiles();
  for (int64_t number = at.block; number < tiles; number += conv.blocks) {
    int64_t own = number;
    const ConvPart& part = conv.all.part_of(&own);
    const ConvPart& beside = t.shortcut.all.parts[&part - conv.all.parts];
    const TilePlace tile = tile_place(part.tiles, own);
    // Of the input and its gradient.
    const auto offset = [&](int pixel) {
      TilePlace place;
      if (!output_place(part.tiles, tile, pixel, &place)) return int64_t{-1};
      const int64_t y = place.y * part.step + part.y, x = place.x * part.step + part.x;
      return first + place.image * image + (y * conv.p.width + x) * conv.outputs;
    };
    typename Split::Sums sums;
    sums.clear();
    convolve_tile<Precision, Split, true>(sums, conv, part, tile, height, width, output, load,
                                          source, weights, false);
    mask_sums<Split>(sums, [&](int pixel) -> const Stored* {
      const int64_t from = offset(pixel);
      return from < 0 ? nullptr : static_cast<const Stored*>(conv.p.input) + from;
    });
    convolve_tile<Precision, Split, true>(sums, t.shortcut, beside, tile, height, width, output,
                                          quarter, source, weights, false);
    hand_out<Split>(sums, [&](int pixel) {
      const int64_t to = offset(pixel);
      Stored* gradient = static_cast<Stored*>(conv.p.grad_input) + to;
      return [=](int /*fragment*/, int n, float left, float right) {
        if (to >= 0) store_pair(gradient + n, left, right);
      };
    });
  }
}

// --- Any other shape -----------------------------------------------------------------------------

struct ReductionConvAdd {
  void* sum;
  const void* more;
  int64_t count;
};

template <class Stored>
__global__ void __launch_bounds__(kConvNormThreads) reduction_conv_add(ReductionConvAdd p) {
  wait_for_previous();
  allow_next();
  const int64_t i = thread_number();
  if (i >= p.count) return;
  Stored* sum = static_cast<Stored*>(p.sum) + i;
  store_stored(sum, load_stored(sum) + load_stored(static_cast<const Stored*>(p.more) + i));
}

}  // namespace cwkernels
