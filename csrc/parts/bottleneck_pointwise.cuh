#pragma once
#include "bottleneck_product.cuh"

// Kernels of inverted_bottleneck's pointwise convolutions on matrix units: outputs, and gradients
// of what they read. Blocks persist; grids are (shares, 1, architectures) where they sum.
namespace cwkernels {

template <class Stored>
__device__ ProductWeights product_weights(const BottleneckChoice<Stored>& choice, int place,
                                          bool transposed) {
  const int outputs = static_cast<int>(choice.channels(place));
  const int depth = static_cast<int>(choice.depth(place));
  return {choice.weight(place), transposed ? depth : outputs, transposed ? outputs : depth};
}

template <class Stored>
__device__ __forceinline__ void add_pair(Lanes<float, 2>& pair, const Stored* from) {
  const auto other = load_lanes<2>(from);
  pair[0] += other[0];
  pair[1] += other[1];
}

// Raw outputs and their statistics; by known statistics the last convolution's are finished.
template <class Precision, class Source, class Stored = typename Precision::Stored>
__device__ __forceinline__ void run_products(const BottleneckShare<Stored>& share,
                                             const Source& source, const ProductShared& shared) {
  const BottleneckChoice<Stored>& choice = share.choice;
  const int place = share.place;
  const int64_t pixels = choice.pixels(place);
  const int channels = static_cast<int>(choice.channels(place));
  const int output = static_cast<int>(share.first_channel());
  const ProductWeights weight = product_weights(choice, place, false);
  const bool finish = place == 2 && !choice.p.training;
  if (finish) fill_norms(choice, 2, output, kProductOutputs, shared.output_table);
  Stored* raw = choice.raw(place);
  const ColumnMoments moments(shared);
  const Range tiles = share.tiles(ceil_div(pixels, kProductPixels));
  for (int64_t t = tiles.begin; t < tiles.end; ++t) {
    const ProductTile tile(t * kProductPixels, pixels, output);
    BottleneckSplit::Sums sums;
    product_tile<Precision, false>(sums, source, weight, tile, shared);
    each_pair(tile, channels, [&](int64_t row, int column, int i, int j, int e) {
      Lanes<float, 2> pair{sums.values[i][j][e], sums.values[i][j][e + 1]};
      const int64_t at = row * channels + column;
      store_lanes(raw + at, pair);
      if (!finish) return;
      const float* table = shared.output_table + (column - output);
      for (int k = 0; k < 2; ++k) {
        pair[k] = Norm<float>{table[k], table[kProductOutputs + k],
                              table[2 * kProductOutputs + k]}(pair[k]);
      }
      if (choice.passes_input()) add_pair(pair, choice.input() + at);
      store_lanes(choice.output() + at, pair);
    });
    if (choice.launch.measure) moments.add(sums, tile);
  }
  allow_next();
  if (choice.launch.measure) leave_columns<Moments<float>>(share, moments, shared);
}

template <class Precision, int kPlace>
__global__ void __launch_bounds__(kProductThreads, kProductResident<Precision>)
    bottleneck_pointwise(const __grid_constant__ BottleneckLaunch launch) {
  using Stored = typename Precision::Stored;
  wait_for_previous();
  const BottleneckChoice<Stored> choice(launch, blockIdx.z);
  const BottleneckShare<Stored> share(choice, kPlace, kProductOutputs);
  if (!share.works()) return;
  const int depth = static_cast<int>(choice.depth(kPlace));
  const ProductShared shared(depth);
  if (kPlace == 0) {
    run_products<Precision>(share, ImageSource<Stored, false>{choice}, shared);
  } else if (choice.code == 0) {
    run_products<Precision>(share, ImageSource<Stored, true>{choice}, shared);
  } else {
    write_statistics_once(choice, 1);
    fill_norms(choice, 1, 0, depth, shared.source_table);
    sync_block();
    run_products<Precision>(
        share, ActivatedSource<Stored>{choice.filtered(), depth, shared.source_table, depth},
        shared);
  }
}

// From the output's gradient through the project convolution, to the gradient before the second
// rectifier and the sums of the second batch norm.
template <class Precision>
__global__ void __launch_bounds__(kProductThreads, kProductResident<Precision>)
    bottleneck_project_gradient(const __grid_constant__ BottleneckLaunch launch) {
  using Stored = typename Precision::Stored;
  wait_for_previous();
  const BottleneckChoice<Stored> choice(launch, blockIdx.z);
  const BottleneckShare<Stored> share(choice, 1, kProductOutputs);
  if (!share.works()) return;
  const ProductShared shared(choice.p.output_channels);
  const int64_t pixels = choice.output_pixels;
  const int channels = static_cast<int>(choice.hidden);
  const int output = static_cast<int>(share.first_channel());
  const ProductWeights weight = product_weights(choice, 2, true);
  fill_norm_gradients(choice, 2, 0, weight.depth, shared.source_table);
  fill_norms(choice, 1, output, kProductOutputs, shared.output_table);
  sync_block();
  const GradientSource<Stored, false> source(choice, 2, shared.source_table, weight.depth);
  const Stored* raw = choice.filtered();
  Stored* gradient = choice.hidden_gradient(1);
  const ColumnSums all(shared);
  const Range tiles = share.tiles(ceil_div(pixels, kProductPixels));
  for (int64_t t = tiles.begin; t < tiles.end; ++t) {
    const ProductTile tile(t * kProductPixels, pixels, output);
    BottleneckSplit::Sums sums;
    product_tile<Precision, true>(sums, source, weight, tile, shared);
    each_pair(tile, channels, [&](int64_t row, int column, int i, int j, int e) {
      const int64_t at = row * channels + column;
      const auto own = load_lanes<2>(raw + at);
      const float* table = shared.output_table + (column - output);
      Lanes<float, 2> through{};
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const Norm<float> norm{table[k], table[kProductOutputs + k],
                               table[2 * kProductOutputs + k]};
        if (norm(own[k]) > 0) through[k] = sums.values[i][j][e + k];
        all.add(2 * j + k, through[k], own[k] - norm.mean);
      }
      store_lanes(gradient + at, through);
    });
  }
  allow_next();
  leave_columns<Sums<float>>(share, all, shared);
}

// The gradient of a tile of input pixels by one architecture, added to that of those before it
// where all share the images.
template <class Precision, class Stored = typename Precision::Stored>
__device__ __forceinline__ void input_gradient_products(const BottleneckChoice<Stored>& choice,
                                                        const ProductTile& tile,
                                                        const ProductShared& shared) {
  const int channels = static_cast<int>(choice.p.input_channels);
  BottleneckSplit::Sums sums;
  if (choice.code > 0) {
    const ProductWeights weight = product_weights(choice, 0, true);
    const GradientSource<Stored, false> source(choice, 0, shared.source_table, weight.depth);
    product_tile<Precision, true>(sums, source, weight, tile, shared);
  } else if (choice.runs(2)) {
    const ProductWeights weight = product_weights(choice, 2, true);
    const GradientSource<Stored, true> source(choice, 2, shared.source_table, weight.depth);
    product_tile<Precision, true>(sums, source, weight, tile, shared);
  } else {
    sums.clear();
  }
  const bool through = choice.passes_input();
  const bool add = choice.index > 0 && choice.p.input_architecture_stride == 0;
  each_pair(tile, channels, [&](int64_t row, int column, int i, int j, int e) {
    const int64_t at = row * channels + column;
    Stored* to = choice.grad_input() + at;
    Lanes<float, 2> pair{sums.values[i][j][e], sums.values[i][j][e + 1]};
    if (through) add_pair(pair, choice.grad_output() + at);
    if (add) add_pair(pair, to);
    store_lanes(to, pair);
  });
}

// Through the expand convolution or an identity to the gradient of the images. The third dimension
// of the grid is 1 for all architectures that share the images, one after another by the same
// thread.
template <class Precision>
__global__ void __launch_bounds__(kProductThreads, kProductResident<Precision>)
    bottleneck_input_gradient(const __grid_constant__ BottleneckLaunch launch) {
  using Stored = typename Precision::Stored;
  wait_for_previous();
  allow_next();
  const int output = static_cast<int>(blockIdx.y) * kProductOutputs;
  const int each = launch.call.input_architecture_stride == 0 ? launch.count : 1;
  const ProductShared shared(launch.input_gradient_depth);
  for (int a = 0; a < each; ++a) {
    const BottleneckChoice<Stored> choice(launch, static_cast<int64_t>(blockIdx.z) * each + a);
    const int place = choice.code > 0 ? 0 : 2;
    sync_block();
    if (choice.runs(place)) {
      fill_norm_gradients(choice, place, 0, choice.channels(place), shared.source_table);
    }
    sync_block();
    const int64_t step = static_cast<int64_t>(gridDim.x) * kProductPixels;
    for (int64_t pixel = static_cast<int64_t>(blockIdx.x) * kProductPixels;
         pixel < choice.input_pixels; pixel += step) {
      input_gradient_products<Precision>(choice, ProductTile(pixel, choice.input_pixels, output),
                                         shared);
    }
  }
}

}  // namespace cwkernels
