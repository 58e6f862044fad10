#include "../parts/block_conv.h"
#include "../parts/measure.h"
#include "conv_norm.h"

namespace cwkernels::CWK_ISA {
namespace {

// What both passes share: the sizes behind the load, and how an architecture's input is loaded.
template <class T>
struct Loading {
  ConvNormParams p;
  int64_t divisor;  // of the sizes, by the average pool
  ConvShape conv;
  Blocks blocks;
  BlockShape source;

  explicit Loading(const ConvNormParams& params)
      : p(params),
        divisor(p.pool ? 2 : 1),
        conv(make_conv(p.height / divisor, p.width / divisor, p.input_channels, p.output_channels,
                       p.kernel_size, p.stride)),
        blocks(make_blocks(p.images, conv.height, conv.width)),
        source(make_block(blocks.per_block, conv.height, conv.width, conv.channels,
                          p.kernel_size / 2)) {}

  int64_t input_size() const { return p.height * p.width * p.input_channels; }
  int64_t output_pixels() const { return conv.output_height * conv.output_width; }

  // Where the images of a block begin in a tensor of `size` elements an image.
  int64_t first(int64_t a, int64_t block, int64_t size) const {
    return (a * p.images + blocks.first(block)) * size;
  }

  const T* mean(int64_t a) const {
    return static_cast<const T*>(p.statistics) + a * 2 * p.input_channels;
  }
  const T* variance(int64_t a) const { return mean(a) + p.input_channels; }

  Norm<T> norm(int64_t a, T* coefficients) const {
    if (!p.statistics) return {};
    return make_norm(mean(a), variance(a), static_cast<const T*>(p.scale),
                     static_cast<const T*>(p.shift), p.eps, p.input_channels, coefficients);
  }

  // Fills the patch of a block with what the convolution sees.
  void load(int64_t a, int64_t block, const Norm<T>& norm, T* patch) const {
    const int64_t row = p.width * p.input_channels;
    const SourceStrides strides{input_size(), divisor * row, divisor * p.input_channels};
    const auto fill = [&](const auto& loader) {
      fill_patch(source, blocks.size(block), loader, 0, strides, patch);
    };
    const auto averaged = [&]<class Inner>(const Inner& inner) {
      p.pool ? fill(LoadAveraged<T, Inner>{inner, row, p.input_channels}) : fill(inner);
    };
    const auto rectified = [&]<class Inner>(const Inner& inner) {
      p.relu ? averaged(LoadRectified<T, Inner>{inner}) : averaged(inner);
    };
    const T* from = static_cast<const T*>(p.input) + first(a, block, input_size());
    p.statistics ? rectified(LoadNormalized<T>{from, norm}) : rectified(LoadPlain<T>{from});
  }
};

template <class T>
class Forward {
 public:
  Forward(const ConvNormParams& params, Arena& arena)
      : loading_(params),
        p_(loading_.p),
        convolution_(loading_.conv, ConvPass::forward, loading_.source, arena),
        workers_(max(min(p_.parallel.num_threads, loading_.blocks.count), 1)),
        coefficients_(arena.take<T>(3 * padded_channels<T>(p_.input_channels))),
        packed_(arena.take<T>(convolution_.packed_size())),
        patches_(arena.take<T>(workers_ * loading_.source.size())),
        measures_(arena.take<T>(loading_.blocks.count * measure_size())) {}

  void run() const {
    convolution_.prepare();
    parallel_for(p_.parallel, convolution_.pack_tasks(), [&](int64_t task) {
      convolution_.pack(static_cast<const T*>(p_.weight), task, packed_);
    });
    parallel_for(p_.parallel, workers_, [&](int64_t w) { clear_patch(loading_.source, patch(w)); });
    for (int64_t a = 0; a < p_.architectures; ++a) one(a);
  }

 private:
  int64_t measure_size() const { return 2 * padded_channels<T>(p_.output_channels); }
  T* patch(int64_t worker) const { return patches_ + worker * loading_.source.size(); }

  void one(int64_t a) const {
    const Blocks& blocks = loading_.blocks;
    const int64_t pixels = loading_.output_pixels(), outputs = p_.output_channels;
    const Norm<T> norm = loading_.norm(a, coefficients_);
    for_blocks(p_.parallel, workers_, blocks.count, [&](int64_t worker, int64_t block) {
      loading_.load(a, block, norm, patch(worker));
      T* to = static_cast<T*>(p_.output) + loading_.first(a, block, pixels * outputs);
      convolution_.run(packed_, patch(worker), blocks.size(block), to, false);
      measure(to, blocks.size(block) * pixels, outputs, outputs,
              measures_ + block * measure_size());
    });
    merge_measures(
        measures_, blocks.count, [&](int64_t b) { return blocks.size(b) * pixels; }, outputs,
        static_cast<T*>(p_.measured) + a * 2 * outputs);
  }

  Loading<T> loading_;
  const ConvNormParams& p_;
  BlockConvolution<T> convolution_;
  int64_t workers_;
  T* coefficients_;
  T* packed_;
  T* patches_;
  T* measures_;
};

template <class T>
class Backward {
 public:
  Backward(const ConvNormParams& params, Arena& arena)
      : loading_(params),
        p_(loading_.p),
        target_(make_block(loading_.blocks.per_block, loading_.conv.output_height,
                           loading_.conv.output_width, p_.output_channels, p_.kernel_size / 2)),
        data_(loading_.conv, ConvPass::backward_input, target_, arena),
        weight_(loading_.conv, loading_.source, target_, arena) {
    const int64_t fitting = kPartialBytes / (weight_.partial_size() * int64_t{sizeof(T)});
    workers_ = max(min(min(p_.parallel.num_threads, loading_.blocks.count), fitting), 1);
    coefficients_ = arena.take<T>(7 * padded());
    merged_ = arena.take<double>(2 * p_.input_channels);
    packed_ = arena.take<T>(data_.packed_size());
    sources_ = arena.take<T>(workers_ * loading_.source.size());
    targets_ = arena.take<T>(workers_ * target_.size());
    pooled_ = arena.take<T>(p_.pool ? workers_ * loaded_size() * loading_.blocks.per_block : 0);
    partials_ = arena.take<T>(workers_ * weight_.partial_size());
    sums_ = arena.take<T>(loading_.blocks.count * 2 * padded());
  }

  void run() const {
    weight_.prepare();
    if (p_.grad_input) {
      data_.prepare();
      parallel_for(p_.parallel, data_.pack_tasks(), [&](int64_t task) {
        data_.pack(static_cast<const T*>(p_.weight), task, packed_);
      });
    }
    parallel_for(p_.parallel, workers_, [&](int64_t w) {
      clear_patch(loading_.source, source(w));
      clear_patch(target_, target(w));
    });
    for (int64_t a = 0; a < p_.architectures; ++a) {
      one(a);
      const WeightPartials<T> partials =
          weight_.partials(partials_, workers_, weight_.partial_size());
      parallel_for(p_.parallel, partials.tasks(), [&](int64_t task) {
        partials.reduce(task, a > 0, static_cast<T*>(p_.grad_weight));
      });
      if (p_.statistics) through_norm(a);
    }
  }

 private:
  int64_t padded() const { return padded_channels<T>(p_.input_channels); }
  int64_t loaded_size() const {
    return loading_.conv.height * loading_.conv.width * p_.input_channels;
  }
  T* source(int64_t worker) const { return sources_ + worker * loading_.source.size(); }
  T* target(int64_t worker) const { return targets_ + worker * target_.size(); }
  T* grad_input(int64_t a, int64_t block) const {
    return static_cast<T*>(p_.grad_input) + loading_.first(a, block, loading_.input_size());
  }

  // The weights' gradient, and the input's up to the normalisation, with its two sums.
  void one(int64_t a) const {
    const Blocks& blocks = loading_.blocks;
    const Norm<T> norm = loading_.norm(a, coefficients_);
    const int64_t size = loading_.output_pixels() * p_.output_channels;
    parallel_for(p_.parallel, workers_, [&](int64_t w) {
      T* partial = partials_ + w * weight_.partial_size();
      for (int64_t i = 0; i < weight_.partial_size(); ++i) partial[i] = T(0);
    });
    for_blocks(p_.parallel, workers_, blocks.count, [&](int64_t worker, int64_t block) {
      const int64_t images = blocks.size(block);
      const T* grad = static_cast<const T*>(p_.grad_output) + loading_.first(a, block, size);
      fill_patch(target_, images, LoadPlain<T>{grad}, 0, dense_strides(target_), target(worker));
      loading_.load(a, block, norm, source(worker));
      weight_.accumulate(source(worker), target(worker), images,
                         partials_ + worker * weight_.partial_size());
      if (!p_.grad_input) return;
      T* to = p_.pool ? pooled_ + worker * loaded_size() * blocks.per_block : grad_input(a, block);
      data_.run(packed_, target(worker), images, to, false);
      if (p_.pool || p_.relu) through_load(a, block, norm, to);
      if (!p_.statistics) return;
      const LoadPlain<T> masked{grad_input(a, block)};
      const LoadPlain<T> raw{static_cast<const T*>(p_.input) +
                             loading_.first(a, block, loading_.input_size())};
      const int64_t step = p_.input_channels;
      sum_gradients<T>([&](int64_t p, int64_t c, int64_t l) { return masked(p * step, c, l); },
                       [&](int64_t p, int64_t c, int64_t l) { return raw(p * step, c, l); },
                       coefficients_, images * p_.height * p_.width, p_.input_channels,
                       sums_ + block * 2 * padded());
    });
  }

  // Back through the average and the ReLU: from the gradient of what was loaded.
  CWK_FLATTEN void through_load(int64_t a, int64_t block, const Norm<T>& norm,
                                const T* loaded) const {
    const int64_t channels = p_.input_channels, divisor = loading_.divisor;
    const Vector<T> share = broadcast(T(1) / static_cast<T>(divisor * divisor));
    const T* input =
        static_cast<const T*>(p_.input) + loading_.first(a, block, loading_.input_size());
    T* to = grad_input(a, block);
    for (int64_t i = 0; i < loading_.blocks.size(block); ++i, loaded += loaded_size()) {
      for (int64_t pixel = 0; pixel < p_.height * p_.width; ++pixel) {
        const int64_t y = pixel / p_.width / divisor, x = pixel % p_.width / divisor;
        const bool read = y < loading_.conv.height && x < loading_.conv.width;
        const T* from = loaded + (y * loading_.conv.width + x) * channels;
        for (int64_t c = 0; c < channels; c += kLanes<T>) {
          const int64_t left = channels - c;
          Vector<T> grad{};
          if (read) grad = load_channels(from + c, left) * share;
          if (p_.relu) {
            Vector<T> value = load_channels(input + c, left);
            if (p_.statistics) value = norm(value, c);
            grad = value <= Vector<T>{} ? Vector<T>{} : grad;
          }
          store_channels(to + c, grad, left);
        }
        input += channels;
        to += channels;
      }
    }
  }

  // Back through the normalisation, in place.
  void through_norm(int64_t a) const {
    const Blocks& blocks = loading_.blocks;
    const int64_t channels = p_.input_channels;
    merge_gradients(sums_, blocks.count, channels, merged_);
    const double count = static_cast<double>(p_.images * p_.height * p_.width);
    const NormBackward<T> backward = make_norm_backward(
        loading_.mean(a), loading_.variance(a), static_cast<const T*>(p_.scale), p_.eps,
        p_.training, merged_, count, channels, coefficients_ + 3 * padded());
    for (int64_t c = 0; p_.grad_scale && c < channels; ++c) {
      const double deviation =
          __builtin_sqrt(static_cast<double>(loading_.variance(a)[c]) + p_.eps);
      T* scale = static_cast<T*>(p_.grad_scale) + c;
      T* shift = static_cast<T*>(p_.grad_shift) + c;
      *scale = (a > 0 ? *scale : T(0)) + static_cast<T>(merged_[channels + c] / deviation);
      *shift = (a > 0 ? *shift : T(0)) + static_cast<T>(merged_[c]);
    }
    for_blocks(p_.parallel, workers_, blocks.count,
               [&](int64_t, int64_t block) { normalise_gradient(a, block, backward); });
  }

  CWK_FLATTEN void normalise_gradient(int64_t a, int64_t block,
                                      const NormBackward<T>& backward) const {
    const int64_t channels = p_.input_channels;
    T* grad = grad_input(a, block);
    const LoadNormGradient<T> load{
        grad, static_cast<const T*>(p_.input) + loading_.first(a, block, loading_.input_size()),
        backward};
    const int64_t pixels = loading_.blocks.size(block) * p_.height * p_.width;
    for (int64_t c = 0; c < channels; c += kLanes<T>) {
      for (int64_t at = 0; at < pixels * channels; at += channels) {
        store_channels(grad + at + c, load(at, c, channels - c), channels - c);
      }
    }
  }

  Loading<T> loading_;
  const ConvNormParams& p_;
  BlockShape target_;
  BlockConvolution<T> data_;
  BlockWeightGradient<T> weight_;
  int64_t workers_;
  T* coefficients_;
  double* merged_;
  T* packed_;
  T* sources_;
  T* targets_;
  T* pooled_;
  T* partials_;
  T* sums_;
};

template <template <class> class Pass>
int64_t workspace(const ConvNormParams& params) {
  Arena arena(nullptr);
  params.double_precision ? void(Pass<double>(params, arena)) : void(Pass<float>(params, arena));
  return arena.used();
}

template <template <class> class Pass>
void run(const ConvNormParams& params) {
  Arena arena(params.workspace);
  params.double_precision ? Pass<double>(params, arena).run() : Pass<float>(params, arena).run();
}

}  // namespace

int64_t conv_norm_workspace(const ConvNormParams& params) { return workspace<Forward>(params); }
void conv_norm(const ConvNormParams& params) { run<Forward>(params); }
int64_t conv_norm_backward_workspace(const ConvNormParams& params) {
  return workspace<Backward>(params);
}
void conv_norm_backward(const ConvNormParams& params) { run<Backward>(params); }

}  // namespace cwkernels::CWK_ISA
