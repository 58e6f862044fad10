#pragma once
#include "conv_plan.h"
#include "winograd.h"
#include "winograd_weight.h"

// gather_conv by Winograd: images are copied between zeros, block by block, and convolved there.
namespace cwkernels::CWK_ISA {

// A patch stays in L2 beside weights, inputs and products of a tile block.
constexpr int64_t kWinogradPatchBytes = 128 << 10;

// Each side of a pass as it takes part: what is copied between zeros, what is written.
template <class T>
CWK_INLINE Side<T> input_side(const GatherConvParams& p) {
  return {static_cast<T*>(p.input), p.input_strides, p.input_height, p.input_width,
          p.input_channels};
}
template <class T>
CWK_INLINE Side<T> output_side(const GatherConvParams& p) {
  return {static_cast<T*>(p.output), p.output_strides, p.output_height, p.output_width,
          p.output_channels};
}

// Whether this call may and should go by Winograd. The choice depends on the shape of one
// architecture's images only, never on how many architectures there are.
template <class T>
CWK_INLINE bool winograd_applies(const GatherConvParams& p) {
  if (!p.winograd || p.depthwise) return false;
  if (p.kernel_size != kWinogradTaps || p.stride != 1) return false;
  if (!winograd_pays<T>(p.input_height, p.input_width, p.input_channels, p.output_channels)) {
    return false;
  }
  const int64_t tiles = winograd_tiles(p.input_height, p.input_width);
  // Transformed weights and sums are four times the weights: tiles must share them (at 64 channels
  // both ways tie at 8 tiles), and the sums must fit.
  if (p.pass != ConvPass::backward_weight) return p.images * tiles >= kTileBlock;
  return p.images * tiles >= kWeightTileBlock &&
         kFrequencies * p.input_channels * p.output_channels * int64_t{sizeof(T)} <= kPartialBytes;
}

// Blocks of images, or of rows of tiles of one image where that is large.
struct WinogradBlocks {
  int64_t images, rows;         // a block, at most
  int64_t image_blocks, bands;  // how many there are
  int64_t image_count, height;

  CWK_INLINE int64_t count() const { return image_blocks * bands; }
};

struct WinogradBlock {
  int64_t image, images, row, rows;
};

template <class T>
CWK_INLINE WinogradBlocks winograd_blocks(const GatherConvParams& p) {
  const int64_t channels = max(p.input_channels, p.output_channels);
  const int64_t row_bytes =
      winograd_patch_side(p.input_width) * channels * static_cast<int64_t>(sizeof(T));
  const int64_t fitting = (kWinogradPatchBytes / row_bytes - 2) / kWinogradOutputs;
  WinogradBlocks blocks{};
  blocks.rows = min(max(fitting, 1) * kWinogradOutputs, p.input_height);
  blocks.images = 1;
  if (blocks.rows == p.input_height) {
    const int64_t tiles = winograd_tiles(p.input_height, p.input_width);
    blocks.images = min(max(kTileBlock / tiles, 1), p.images);
  }
  blocks.image_blocks = ceil_div(p.images, blocks.images);
  blocks.bands = ceil_div(p.input_height, blocks.rows);
  blocks.image_count = p.images;
  blocks.height = p.input_height;
  return blocks;
}

CWK_INLINE WinogradBlock winograd_block(const WinogradBlocks& blocks, int64_t index) {
  WinogradBlock block{};
  block.image = index / blocks.bands * blocks.images;
  block.images = min(blocks.images, blocks.image_count - block.image);
  block.row = index % blocks.bands * blocks.rows;
  block.rows = min(blocks.rows, blocks.height - block.row);
  return block;
}

CWK_INLINE WinogradShape winograd_shape(const GatherConvParams& p, const WinogradBlocks& blocks,
                                        int64_t rows, int64_t channels, int64_t outputs) {
  return {blocks.images,
          rows,
          p.input_width,
          winograd_patch_side(blocks.rows),
          winograd_patch_side(p.input_width),
          channels,
          outputs,
          1,
          1};
}

// A block of images between zeros. The rows next to a band are its neighbours' or, with no `halo`,
// zero. The columns around are zero already and stay it.
template <class T>
CWK_INLINE void fill_winograd_patch(const WinogradShape& shape, const WinogradBlock& block,
                                    const Side<T>& side, const T* data, bool halo, T* patch) {
  const int64_t row_size = shape.patch_columns * side.channels;
  const int64_t low = halo ? 0 : block.row;
  const int64_t high = halo ? side.height : block.row + block.rows;
  for (int64_t i = 0; i < block.images; ++i) {
    const T* image = data + (block.image + i) * side.strides.image;
    for (int64_t r = 0; r < shape.patch_rows; ++r) {
      T* to = patch + (i * shape.patch_rows + r) * row_size + side.channels;
      const int64_t y = block.row + r - 1;
      if (y < low || y >= high) {
        clear(to, side.width * side.channels);
        continue;
      }
      const T* from = image + y * side.strides.row;
      if (side.strides.column == side.channels) {
        for (int64_t x = 0; x < side.width * side.channels; ++x) to[x] = from[x];
        continue;
      }
      for (int64_t x = 0; x < side.width; ++x) {
        for (int64_t c = 0; c < side.channels; ++c) {
          to[x * side.channels + c] = from[x * side.strides.column + c];
        }
      }
    }
  }
}

// Forward and backward_input: the side that is written is dense.
template <class T>
class WinogradGatherConvolution {
 public:
  WinogradGatherConvolution(const GatherConvParams& params, Arena& arena)
      : p_(params),
        transposed_(params.pass == ConvPass::backward_input),
        source_(transposed_ ? output_side<T>(params) : input_side<T>(params)),
        target_(transposed_ ? input_side<T>(params) : output_side<T>(params)),
        blocks_(winograd_blocks<T>(params)),
        shape_(winograd_shape(params, blocks_, blocks_.rows, source_.channels, target_.channels)),
        conv_(shape_) {
    // The architectures that share a source or a target are taken in order within one task.
    together_ = source_.strides.architecture == 0 || target_.strides.architecture == 0
                    ? p_.architectures
                    : 1;
    tasks_ = p_.architectures / max(together_, 1) * blocks_.count();
    workers_ = workers_for(p_.parallel, tasks_);
    packed_ = arena.take<T>(p_.architectures * conv_.packed_size());
    patch_size_ = round_up(shape_.patch_size(), 64);
    patch_ = arena.take<T>(workers_ * patch_size_);
    scratch_size_ = round_up(conv_.scratch_size(), 64);
    scratch_ = arena.take<T>(workers_ * scratch_size_);
  }

  void run() const {
    if (tasks_ == 0) return;
    const int64_t jobs = conv_.pack_jobs();
    parallel_for(p_.parallel, p_.architectures * jobs, [&](int64_t job) {
      const int64_t a = job / jobs;
      const T* weight = static_cast<const T*>(p_.weight) +
                        p_.rows[a] * p_.output_channels * p_.input_channels * kWeightTaps;
      conv_.pack(&weight, transposed_, job % jobs, packed_ + a * conv_.packed_size());
    });
    parallel_for(p_.parallel, workers_, [&](int64_t w) {
      clear(patch_ + w * patch_size_, patch_size_);
      for (int64_t t = w * tasks_ / workers_; t < (w + 1) * tasks_ / workers_; ++t) task(t, w);
    });
  }

 private:
  void task(int64_t index, int64_t worker) const {
    const WinogradBlock block = winograd_block(blocks_, index % blocks_.count());
    const int64_t first = index / blocks_.count() * together_;
    const T* patch = patch_ + worker * patch_size_;
    WinogradShape shape = shape_;
    shape.height = block.rows;
    const WinogradConvolution<T> conv(shape);
    for (int64_t a = first; a < first + together_; ++a) {
      if (a == first || source_.strides.architecture != 0) {
        fill_winograd_patch<T>(shape, block, source_,
                               source_.data + a * source_.strides.architecture, true,
                               patch_ + worker * patch_size_);
      }
      T* target = target_.data + a * target_.strides.architecture +
                  block.image * target_.strides.image + block.row * target_.strides.row;
      conv.run(packed_ + a * conv.packed_size(), &patch, block.images, &target,
               a > first && target_.strides.architecture == 0, scratch_ + worker * scratch_size_);
    }
  }

  GatherConvParams p_;
  bool transposed_;
  Side<T> source_, target_;
  WinogradBlocks blocks_;
  WinogradShape shape_;
  WinogradConvolution<T> conv_;
  int64_t together_, tasks_, workers_, patch_size_, scratch_size_;
  T* packed_;
  T* patch_;
  T* scratch_;
};

template <class T>
class WinogradGatherWeightGradient {
 public:
  WinogradGatherWeightGradient(const GatherConvParams& params, Arena& arena)
      : p_(params),
        input_(input_side<T>(params)),
        output_(output_side<T>(params)),
        blocks_(winograd_blocks<T>(params)),
        shape_(winograd_shape(params, blocks_, blocks_.rows, input_.channels, output_.channels)),
        sums_(shape_) {
    const int64_t fitting = kPartialBytes / (sums_.partial_size() * int64_t{sizeof(T)});
    chunks_ = min(workers_for(p_.parallel, blocks_.count()), fitting);
    partial_ = arena.take<T>(chunks_ * sums_.partial_size());
    const int64_t pixels = shape_.images_per_block * shape_.patch_rows * shape_.patch_columns;
    patch_size_ = round_up(pixels * max(input_.channels, output_.channels), 64);
    patches_ = arena.take<T>(chunks_ * 2 * patch_size_);
    scratch_size_ = round_up(sums_.scratch_size(), 64);
    scratch_ = arena.take<T>(chunks_ * scratch_size_);
  }

  void run() const {
    const int64_t row_size = p_.output_channels * p_.input_channels * kWeightTaps;
    for (int64_t a = 0; a < p_.architectures; ++a) {
      parallel_for(p_.parallel, chunks_, [&](int64_t chunk) { sum_chunk(a, chunk); });
      T* grad = static_cast<T*>(p_.weight_grad) + p_.slots[a] * row_size;
      bool again = false;
      for (int64_t earlier = 0; earlier < a; ++earlier) again |= p_.slots[earlier] == p_.slots[a];
      parallel_for(p_.parallel, sums_.finish_jobs(), [&](int64_t job) {
        sums_.finish(partial_, sums_.partial_size(), chunks_, again, job, &grad);
      });
    }
  }

 private:
  void sum_chunk(int64_t a, int64_t chunk) const {
    T* patch = patches_ + chunk * 2 * patch_size_;
    T* gradient = patch + patch_size_;
    clear(patch, 2 * patch_size_);
    const int64_t begin = chunk * blocks_.count() / chunks_;
    for (int64_t b = begin; b < (chunk + 1) * blocks_.count() / chunks_; ++b) {
      const WinogradBlock block = winograd_block(blocks_, b);
      WinogradShape shape = shape_;
      shape.height = block.rows;
      fill_winograd_patch<T>(shape, block, input_, input_.data + a * input_.strides.architecture,
                             true, patch);
      fill_winograd_patch<T>(shape, block, output_, output_.data + a * output_.strides.architecture,
                             false, gradient);
      WinogradWeightGradient<T>(shape).accumulate(patch, &gradient, block.images, b > begin,
                                                  partial_ + chunk * sums_.partial_size(),
                                                  scratch_ + chunk * scratch_size_);
    }
  }

  GatherConvParams p_;
  Side<T> input_, output_;
  WinogradBlocks blocks_;
  WinogradShape shape_;
  WinogradWeightGradient<T> sums_;
  int64_t chunks_, patch_size_, scratch_size_;
  T* partial_;
  T* patches_;
  T* scratch_;
};

}  // namespace cwkernels::CWK_ISA
