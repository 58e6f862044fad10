#include "../parts/block_conv.h"
#include "../parts/measure.h"
#include "../parts/winograd_weight.h"
#include "conv_norm.h"

namespace cwkernels::CWK_ISA {
namespace {

// What both passes share: the sizes behind the load, and how an architecture's input is loaded.
template <class T>
struct Loading {
  ConvNormParams p;
  int64_t divisor;  // of the sizes, by the average pool
  ConvShape conv;
  bool winograd;
  Blocks blocks;
  BlockShape source, target;

  explicit Loading(const ConvNormParams& params)
      : p(params),
        divisor(p.pool ? 2 : 1),
        conv(make_conv(p.height / divisor, p.width / divisor, p.input_channels, p.output_channels,
                       p.kernel_size, p.stride)),
        winograd(p.winograd && p.kernel_size == kWinogradTaps && p.stride == 1 &&
                 winograd_pays<T>(conv.height, conv.width, conv.channels, conv.outputs)),
        blocks(make_blocks(p.images, conv.height, conv.width)),
        source(make_block(blocks.per_block, conv.height, conv.width, conv.channels,
                          p.kernel_size / 2, winograd ? kWinogradOutputs : 1)),
        target(make_block(blocks.per_block, conv.output_height, conv.output_width, conv.outputs,
                          p.kernel_size / 2, winograd ? kWinogradOutputs : 1)) {}

  WinogradShape winograd_shape(int64_t channels, int64_t outputs) const {
    return {blocks.per_block, conv.height, conv.width, source.rows, source.columns, channels,
            outputs,          1,           1};
  }

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

// One direction of the convolution, by Winograd where it pays.
template <class T>
class Convolver {
 public:
  Convolver(const Loading<T>& loading, ConvPass pass, Arena& arena)
      : winograd_(loading.winograd),
        transposed_(pass != ConvPass::forward),
        parallel_(loading.p.parallel),
        direct_(loading.conv, pass, transposed_ ? loading.target : loading.source, arena),
        fast_(transposed_ ? loading.winograd_shape(loading.conv.outputs, loading.conv.channels)
                          : loading.winograd_shape(loading.conv.channels, loading.conv.outputs)),
        packed_(arena.take<T>(winograd_ ? fast_.packed_size() : direct_.packed_size())) {}

  int64_t scratch_size() const { return winograd_ ? fast_.scratch_size() : 0; }

  void prepare(const void* weight) const {
    const T* row = static_cast<const T*>(weight);
    if (winograd_) {
      return parallel_for(parallel_, fast_.pack_jobs(),
                          [&](int64_t job) { fast_.pack(&row, transposed_, job, packed_); });
    }
    direct_.prepare();
    parallel_for(parallel_, direct_.pack_tasks(),
                 [&](int64_t task) { direct_.pack(row, task, packed_); });
  }

  void run(const T* patch, int64_t images, T* target, T* scratch) const {
    if (winograd_) return fast_.run(packed_, &patch, images, &target, false, scratch);
    direct_.run(packed_, patch, images, target, false);
  }

 private:
  bool winograd_, transposed_;
  Parallel parallel_;
  BlockConvolution<T> direct_;
  WinogradConvolution<T> fast_;
  T* packed_;
};

template <class T>
class Forward {
 public:
  Forward(const ConvNormParams& params, Arena& arena)
      : loading_(params),
        p_(loading_.p),
        convolution_(loading_, ConvPass::forward, arena),
        workers_(workers_for(p_.parallel, loading_.blocks.count)),
        coefficients_(arena.take<T>(3 * padded_channels<T>(p_.input_channels))),
        patches_(arena.take<T>(workers_ * loading_.source.size())),
        scratch_(arena.take<T>(workers_ * convolution_.scratch_size())),
        measures_(arena.take<T>(loading_.blocks.count * measure_size())) {}

  void run() const {
    convolution_.prepare(p_.weight);
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
    run_tasks(p_.parallel, workers_, blocks.count, [&](int64_t block, int64_t worker) {
      loading_.load(a, block, norm, patch(worker));
      T* to = static_cast<T*>(p_.output) + loading_.first(a, block, pixels * outputs);
      convolution_.run(patch(worker), blocks.size(block), to,
                       scratch_ + worker * convolution_.scratch_size());
      measure(to, blocks.size(block) * pixels, outputs, outputs,
              measures_ + block * measure_size());
    });
    merge_measures(
        measures_, blocks.count, [&](int64_t b) { return blocks.size(b) * pixels; }, outputs,
        static_cast<T*>(p_.measured) + a * 2 * outputs);
  }

  Loading<T> loading_;
  const ConvNormParams& p_;
  Convolver<T> convolution_;
  int64_t workers_;
  T* coefficients_;
  T* patches_;
  T* scratch_;
  T* measures_;
};

template <class T>
class Backward {
 public:
  Backward(const ConvNormParams& params, Arena& arena)
      : loading_(params),
        p_(loading_.p),
        data_(loading_, ConvPass::backward_input, arena),
        weight_(loading_.conv, loading_.source, loading_.target, arena),
        fast_weight_(loading_.winograd_shape(p_.input_channels, p_.output_channels)) {
    const int64_t fitting = kPartialBytes / (partial_size() * int64_t{sizeof(T)});
    workers_ = min(workers_for(p_.parallel, loading_.blocks.count), max(fitting, 1));
    coefficients_ = arena.take<T>(7 * padded());
    merged_ = arena.take<double>(2 * p_.input_channels);
    scratch_ = arena.take<T>(workers_ * scratch_size());
    sources_ = arena.take<T>(workers_ * loading_.source.size());
    targets_ = arena.take<T>(workers_ * loading_.target.size());
    pooled_ = arena.take<T>(p_.pool ? workers_ * loaded_size() * loading_.blocks.per_block : 0);
    partials_ = arena.take<T>(workers_ * partial_size());
    sums_ = arena.take<T>(loading_.blocks.count * 2 * padded());
  }

  void run() const {
    weight_.prepare();
    if (p_.grad_input) data_.prepare(p_.weight);
    parallel_for(p_.parallel, workers_, [&](int64_t w) {
      clear_patch(loading_.source, source(w));
      clear_patch(loading_.target, target(w));
    });
    for (int64_t a = 0; a < p_.architectures; ++a) {
      one(a);
      reduce_weights(a > 0);
      if (p_.statistics) through_norm(a);
    }
  }

 private:
  int64_t padded() const { return padded_channels<T>(p_.input_channels); }
  int64_t partial_size() const {
    return loading_.winograd ? fast_weight_.partial_size() : weight_.partial_size();
  }
  int64_t scratch_size() const {
    return max(data_.scratch_size(), loading_.winograd ? fast_weight_.scratch_size() : 0);
  }
  T* scratch(int64_t worker) const { return scratch_ + worker * scratch_size(); }
  int64_t loaded_size() const {
    return loading_.conv.height * loading_.conv.width * p_.input_channels;
  }
  T* source(int64_t worker) const { return sources_ + worker * loading_.source.size(); }
  T* target(int64_t worker) const { return targets_ + worker * loading_.target.size(); }
  T* grad_input(int64_t a, int64_t block) const {
    return static_cast<T*>(p_.grad_input) + loading_.first(a, block, loading_.input_size());
  }

  // The weights' gradient, and the input's up to the normalisation, with its two sums.
  void one(int64_t a) const {
    const Blocks& blocks = loading_.blocks;
    const Norm<T> norm = loading_.norm(a, coefficients_);
    const int64_t size = loading_.output_pixels() * p_.output_channels;
    run_tasks(p_.parallel, workers_, blocks.count, [&](int64_t block, int64_t worker) {
      const int64_t images = blocks.size(block);
      const T* grad = static_cast<const T*>(p_.grad_output) + loading_.first(a, block, size);
      fill_patch(loading_.target, images, LoadPlain<T>{grad}, 0, dense_strides(loading_.target),
                 target(worker));
      loading_.load(a, block, norm, source(worker));
      sum_weights(worker, images, block == first_task(worker, workers_, blocks.count));
      if (!p_.grad_input) return;
      T* to = p_.pool ? pooled_ + worker * loaded_size() * blocks.per_block : grad_input(a, block);
      data_.run(target(worker), images, to, scratch(worker));
      if (p_.pool || p_.relu) through_load(a, block, norm, to);
      if (!p_.statistics) return;
      const LoadPlain<T> masked{grad_input(a, block)};
      const LoadPlain<T> raw{static_cast<const T*>(p_.input) +
                             loading_.first(a, block, loading_.input_size())};
      const int64_t step = p_.input_channels;
      const auto values = [&](int64_t p, int64_t c, int64_t left) {
        raw.prefetch(p * step + c + kAhead<T>);
        return raw(p * step, c, left);
      };
      sum_gradients<T>([&](int64_t p, int64_t c, int64_t l) { return masked(p * step, c, l); },
                       values, coefficients_, images * p_.height * p_.width, p_.input_channels,
                       sums_ + block * 2 * padded());
    });
  }

  // Adds a block to a worker's partial result, or begins it.
  void sum_weights(int64_t worker, int64_t images, bool begin) const {
    T* partial = partials_ + worker * partial_size();
    if (loading_.winograd) {
      const T* gradient = target(worker);
      return fast_weight_.accumulate(source(worker), &gradient, images, !begin, partial,
                                     scratch(worker));
    }
    if (begin) clear(partial, partial_size());
    weight_.accumulate(source(worker), target(worker), images, partial);
  }

  void reduce_weights(bool add) const {
    T* to = static_cast<T*>(p_.grad_weight);
    if (loading_.winograd) {
      return parallel_for(p_.parallel, fast_weight_.finish_jobs(), [&](int64_t job) {
        fast_weight_.finish(partials_, partial_size(), workers_, add, job, &to);
      });
    }
    const WeightPartials<T> partials = weight_.partials(partials_, workers_, partial_size());
    parallel_for(p_.parallel, partials.tasks(),
                 [&](int64_t task) { partials.reduce(task, add, to); });
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
    run_tasks(p_.parallel, workers_, blocks.count,
              [&](int64_t block, int64_t) { normalise_gradient(a, block, backward); });
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
      const auto own = load.channel(c, channels - c);
      for (int64_t at = 0; at < pixels * channels; at += channels) {
        load.prefetch(at + c + kAhead<T>);
        store_channels(grad + at + c, own(at), channels - c);
      }
    }
  }

  Loading<T> loading_;
  const ConvNormParams& p_;
  Convolver<T> data_;
  BlockWeightGradient<T> weight_;
  WinogradWeightGradient<T> fast_weight_;
  int64_t workers_;
  T* coefficients_;
  double* merged_;
  T* scratch_;
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
