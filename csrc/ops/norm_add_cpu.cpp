#include "../parts/conv_plan.h"
#include "../parts/measure.h"
#include "../parts/tasks.h"
#include "norm_add.h"

namespace cwkernels::CWK_ISA {
namespace {

// A task is a block of pixels of one architecture: its gradient and its raw values, 32 KB each,
// stay in a 1 MB L2 between the two sums and between the vectors of channels. At least 32 pixels,
// so that the two sums that a block leaves for each channel are at most 1/32 of the block.
constexpr int64_t kBlockBytes = 1 << 15;
constexpr int64_t kLeastPixels = 32;

// Which values of the output were rectified away.
enum class Mask { none, saved, recomputed };

// The gradient of what was rectified, from that of the output. All point to the first pixel of a
// block.
template <class T, Mask kMask>
struct Incoming {
  const T* grad;
  const T* input;
  const T* saved;
  Norm<T> norm;

  CWK_INLINE Vector<T> operator()(int64_t at, int64_t c, int64_t left) const {
    const Vector<T> passed = load_channels(grad + at + c, left);
    if constexpr (kMask == Mask::none) return passed;
    const Vector<T> value = kMask == Mask::saved ? load_channels(saved + at + c, left)
                                                 : norm(load_channels(input + at + c, left), c);
    return value > Vector<T>{} ? passed : Vector<T>{};
  }
};

template <class T>
class NormAdd {
 public:
  NormAdd(const NormAddParams& p, Arena& arena)
      : p_(p),
        pixels_(p.images * p.height * p.width),
        padded_(padded_channels<T>(p.channels)),
        block_pixels_(max(kLeastPixels, kBlockBytes / static_cast<int64_t>(sizeof(T)) / padded_)),
        blocks_(ceil_div(pixels_, block_pixels_)),
        tasks_(p.architectures * blocks_),
        workers_(min(p.parallel.num_threads, tasks_)),
        norms_(arena.take<T>(p.architectures * 3 * padded_)) {
    if (p.pass == NormAddPass::forward) return;
    backwards_ = arena.take<T>(p.architectures * 4 * padded_);
    partials_ = arena.take<T>(tasks_ * 2 * padded_);
    sums_ = arena.take<double>(2 * p.channels);
    if (!grad_is_dense()) copies_ = arena.take<T>(workers_ * block_pixels_ * p.channels);
  }

  void run() const {
    for (int64_t a = 0; a < p_.architectures; ++a) {
      make_norm(mean(a), variance(a), scale(), static_cast<const T*>(p_.shift), p_.eps, p_.channels,
                norms_ + a * 3 * padded_);
    }
    if (p_.pass == NormAddPass::forward) {
      each_block([&](int64_t task, int64_t) { forward(task); });
    } else if (!p_.relu) {
      backward<Mask::none>();
    } else if (p_.saved_output != nullptr) {
      backward<Mask::saved>();
    } else {
      backward<Mask::recomputed>();
    }
  }

 private:
  // Where a block of pixels lies.
  struct Block {
    int64_t architecture, first, pixels, offset;
  };

  Block block(int64_t task) const {
    const int64_t a = task / blocks_, first = task % blocks_ * block_pixels_;
    return {a, first, min(block_pixels_, pixels_ - first), (a * pixels_ + first) * p_.channels};
  }

  const T* statistics(int64_t a, int64_t i) const {
    return static_cast<const T*>(p_.statistics) + (a * 2 + i) * p_.channels;
  }
  const T* mean(int64_t a) const { return statistics(a, 0); }
  const T* variance(int64_t a) const { return statistics(a, 1); }
  const T* scale() const { return static_cast<const T*>(p_.scale); }

  Norm<T> norm(int64_t a) const {
    const T* own = norms_ + a * 3 * padded_;
    return {own, own + padded_, own + 2 * padded_};
  }
  NormBackward<T> norm_backward(int64_t a) const {
    const T* own = backwards_ + a * 4 * padded_;
    return {own, own + padded_, own + 2 * padded_, own + 3 * padded_};
  }

  // Which worker has which task is of no account: a block leaves sums of its own.
  template <class F>
  void each_block(const F& f) const {
    run_tasks(p_.parallel, workers_, tasks_, f);
  }

  void forward(int64_t task) const {
    const Block own = block(task);
    const T* shortcut = static_cast<const T*>(p_.shortcut);
    if (shortcut == nullptr) {
      p_.relu ? write<false, true>(own, nullptr) : write<false, false>(own, nullptr);
    } else {
      shortcut += own.offset;
      p_.relu ? write<true, true>(own, shortcut) : write<true, false>(own, shortcut);
    }
  }

  template <bool kShortcut, bool kRelu>
  CWK_FLATTEN void write(const Block& own, const T* shortcut) const {
    const LoadNormalized<T> value{static_cast<const T*>(p_.input) + own.offset,
                                  norm(own.architecture)};
    T* output = static_cast<T*>(p_.output) + own.offset;
    for_channels(own, [&](int64_t at, int64_t c, int64_t left) {
      Vector<T> sum = value(at, c, left);
      if constexpr (kShortcut) sum += load_channels(shortcut + at + c, left);
      if constexpr (kRelu) sum = rectify<T>(sum);
      store_channels(output + at + c, sum, left);
    });
  }

  // f(offset of the pixel, first channel, channels left), in the order of memory.
  template <class F>
  CWK_INLINE void for_channels(const Block& own, const F& f) const {
    const int64_t channels = p_.channels;
    for (int64_t at = 0; at < own.pixels * channels; at += channels) {
      for (int64_t c = 0; c < channels; c += kLanes<T>) f(at, c, channels - c);
    }
  }

  template <Mask kMask>
  void backward() const {
    if (p_.training || p_.scale != nullptr) {
      each_block([&](int64_t task, int64_t worker) { sum<kMask>(task, worker); });
    }
    for (int64_t a = 0; a < p_.architectures; ++a) finish(a);
    each_block([&](int64_t task, int64_t worker) { write_gradients<kMask>(task, worker); });
  }

  template <Mask kMask>
  Incoming<T, kMask> incoming(const Block& own, int64_t worker) const {
    const T* saved = static_cast<const T*>(p_.saved_output);
    return {grad(own, worker), static_cast<const T*>(p_.input) + own.offset,
            kMask == Mask::saved ? saved + own.offset : nullptr, norm(own.architecture)};
  }

  template <Mask kMask>
  CWK_FLATTEN void sum(int64_t task, int64_t worker) const {
    const Block own = block(task);
    const Incoming<T, kMask> gradient = incoming<kMask>(own, worker);
    const T* input = gradient.input;
    const int64_t channels = p_.channels;
    sum_gradients<T>(
        [&](int64_t p, int64_t c, int64_t left) { return gradient(p * channels, c, left); },
        [&](int64_t p, int64_t c, int64_t left) {
          return load_channels(input + p * channels + c, left);
        },
        gradient.norm.mean, own.pixels, channels, partials_ + task * 2 * padded_);
  }

  // What all blocks of an architecture have to say, for the gradient of its input and of the affine
  // map, to which the architectures add in order.
  void finish(int64_t a) const {
    const int64_t channels = p_.channels;
    const bool summed = p_.training || p_.scale != nullptr;
    merge_gradients(partials_ + a * blocks_ * 2 * padded_, summed ? blocks_ : 0, channels, sums_);
    make_norm_backward(mean(a), variance(a), scale(), p_.eps, p_.training, sums_,
                       static_cast<double>(pixels_), channels, backwards_ + a * 4 * padded_);
    if (p_.scale == nullptr) return;
    T* grad_scale = static_cast<T*>(p_.grad_scale);
    T* grad_shift = static_cast<T*>(p_.grad_shift);
    for (int64_t c = 0; c < channels; ++c) {
      const double deviation = __builtin_sqrt(static_cast<double>(variance(a)[c]) + p_.eps);
      const T own_scale = static_cast<T>(sums_[channels + c] / deviation);
      const T own_shift = static_cast<T>(sums_[c]);
      grad_scale[c] = a == 0 ? own_scale : grad_scale[c] + own_scale;
      grad_shift[c] = a == 0 ? own_shift : grad_shift[c] + own_shift;
    }
  }

  template <Mask kMask>
  void write_gradients(int64_t task, int64_t worker) const {
    const Block own = block(task);
    const Incoming<T, kMask> gradient = incoming<kMask>(own, worker);
    T* grad_shortcut = static_cast<T*>(p_.grad_shortcut);
    if (grad_shortcut == nullptr) {
      write_gradients<false>(own, gradient, nullptr);
    } else {
      write_gradients<true>(own, gradient, grad_shortcut + own.offset);
    }
  }

  template <bool kShortcut, Mask kMask>
  CWK_FLATTEN void write_gradients(const Block& own, const Incoming<T, kMask>& gradient,
                                   T* grad_shortcut) const {
    const NormBackward<T> backward = norm_backward(own.architecture);
    const T* input = gradient.input;
    T* grad_input = static_cast<T*>(p_.grad_input) + own.offset;
    for_channels(own, [&](int64_t at, int64_t c, int64_t left) {
      const Vector<T> passed = gradient(at, c, left);
      const Vector<T> value = load_channels(input + at + c, left);
      store_channels(grad_input + at + c, backward(passed, value, c), left);
      if constexpr (kShortcut) store_channels(grad_shortcut + at + c, passed, left);
    });
  }

  bool grad_is_dense() const {
    const PixelStrides& s = p_.grad_strides;
    return (s.column == p_.channels || p_.width == 1) &&
           (s.row == p_.width * p_.channels || p_.height == 1) &&
           (s.image == p_.height * p_.width * p_.channels || p_.images == 1) &&
           (s.architecture == pixels_ * p_.channels || p_.architectures == 1);
  }

  // The block of the output's gradient where it lies, or as the worker's copy without gaps.
  const T* grad(const Block& own, int64_t worker) const {
    const T* all = static_cast<const T*>(p_.grad_output);
    if (copies_ == nullptr) return all + own.offset;
    const PixelStrides& s = p_.grad_strides;
    T* copy = copies_ + worker * block_pixels_ * p_.channels;
    for (int64_t i = 0; i < own.pixels; ++i) {
      const int64_t pixel = own.first + i;
      const int64_t x = pixel % p_.width, y = pixel / p_.width % p_.height;
      const int64_t n = pixel / (p_.width * p_.height);
      const T* from =
          all + own.architecture * s.architecture + n * s.image + y * s.row + x * s.column;
      T* to = copy + i * p_.channels;
      for (int64_t c = 0; c < p_.channels; c += kLanes<T>) {
        store_channels(to + c, load_channels(from + c, p_.channels - c), p_.channels - c);
      }
    }
    return copy;
  }

  const NormAddParams& p_;
  int64_t pixels_, padded_, block_pixels_, blocks_, tasks_, workers_;
  T* norms_;                // [A, 3, padded]
  T* backwards_ = nullptr;  // [A, 4, padded]
  T* partials_ = nullptr;   // [A, blocks, 2, padded]
  T* copies_ = nullptr;     // [workers, block pixels, C]
  double* sums_ = nullptr;  // [2, C]
};

template <class F>
void with_kernel(const NormAddParams& p, Arena& arena, const F& f) {
  p.double_precision ? f(NormAdd<double>(p, arena)) : f(NormAdd<float>(p, arena));
}

}  // namespace

int64_t norm_add_workspace(const NormAddParams& params) {
  Arena arena(nullptr);
  with_kernel(params, arena, [](const auto&) {});
  return arena.used();
}

void norm_add(const NormAddParams& params) {
  Arena arena(params.workspace);
  with_kernel(params, arena, [](const auto& kernel) { kernel.run(); });
}

}  // namespace cwkernels::CWK_ISA
