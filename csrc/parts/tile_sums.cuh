#pragma once
#include "reduce.cuh"
#include "tile.cuh"

// Sums over the pixels of tiles for each channel of their outputs, from the registers in which a
// product ends: each lane has the same kN x 2 channels of all its pixels.
namespace cwkernels {

__device__ __forceinline__ Moments<float> shuffled_down(const Moments<float>& own, int distance) {
  return {shuffle_down(own.count, distance), shuffle_down(own.mean, distance),
          shuffle_down(own.squares, distance)};
}
__device__ __forceinline__ Sums<float> shuffled_down(const Sums<float>& own, int distance) {
  return {shuffle_down(own.first, distance), shuffle_down(own.second, distance)};
}

// Merges what the lanes and warps of a block gathered of their kN x 2 channels each, of(j, e), in
// their order: [kOutputs] in `values`, shared memory of kWarpsM x kOutputs.
template <class Split, class Value, class Of>
__device__ __forceinline__ void merge_lanes(const Of& of, Value* values) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp % Split::kWarpsM;
#pragma unroll
  for (int j = 0; j < Split::kN; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      Value own = of(j, e);
#pragma unroll
      for (int distance = 16; distance >= 4; distance /= 2) {
        own = own.merged(shuffled_down(own, distance));
      }
      if (lane() < 4) {
        values[warp * Split::kOutputs + Split::output() + j * kMmaColumns + lane() * 2 + e] = own;
      }
    }
  }
  sync_block();
  for (int c = static_cast<int>(threadIdx.x); c < Split::kOutputs; c += Split::kThreads) {
    Value own = values[c];
    for (int m = 1; m < Split::kWarpsM; ++m) own = own.merged(values[m * Split::kOutputs + c]);
    values[c] = own;
  }
  sync_block();
}

// Moments of what a lane wrote, over all its tiles. It has the same pixels of all its channels, so
// that the two divisions of a merge are made once for all of them.
template <class Split>
struct LaneMoments {
  float count = 0.0f;
  float mean[Split::kN][2] = {}, squares[Split::kN][2] = {};

  // Of a tile's sums, 2 kM rows, those whose bit of `live` is set.
  __device__ __forceinline__ void add(const typename Split::Sums& sums, unsigned live) {
    constexpr int kRows = 2 * Split::kM;
    float rows = 0.0f;
#pragma unroll
    for (int i = 0; i < kRows; ++i) rows += static_cast<float>(live >> i & 1);
    if (rows == 0.0f) return;
    const float total = count + rows, part = 1.0f / rows, share = rows / total;
#pragma unroll
    for (int j = 0; j < Split::kN; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float sum = 0.0f, about = 0.0f;
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          if (live >> i & 1) sum += sums.values[i / 2][j][i % 2 * 2 + e];
        }
        const float own = sum * part, apart = own - mean[j][e];
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const float from = sums.values[i / 2][j][i % 2 * 2 + e] - own;
          if (live >> i & 1) about += from * from;
        }
        mean[j][e] += apart * share;
        squares[j][e] += about + apart * apart * count * share;
      }
    }
    count = total;
  }
};

}  // namespace cwkernels
