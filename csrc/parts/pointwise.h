#pragma once
#include "conv_dense.h"
#include "measure.h"
#include "transpose.h"

// 1 x 1 convolutions as matrix products over bands of pixels. A band's operands are loaded once,
// with what a loader does to them, into patches that stay in L2; what the product gives is measured
// or summed while it lies there.
namespace cwkernels::CWK_ISA {

// A band of 128 pixels uses a panel of weights from L2 or L3 16 times (blocks of 8 pixels): 1.5 MB
// of weights (256 x 1536) are 3 bytes a cycle. Its patch of 256 channels is 136 KB in L2 (1 MB).
constexpr int64_t kBandPixels = 128;

// Deeper sums are cut: a block's panel is 256 x 32 floats = 32 KB, in L1 (48 KB) beside the pixels
// that pass by.
constexpr int64_t kDepthBlock = 256;

// Elements between the pixels of a patch: one vector more than the channels, or pixels a power of
// two apart would share few of the cache's sets.
template <class T>
CWK_INLINE int64_t pitch_of(int64_t channels) {
  return padded_channels<T>(channels) + kLanes<T>;
}

struct Band {
  int64_t begin, pixels;

  CWK_INLINE Band(int64_t index, int64_t all)
      : begin(index * kBandPixels), pixels(min(kBandPixels, all - begin)) {}
};

CWK_INLINE int64_t band_count(int64_t pixels) { return ceil_div(pixels, kBandPixels); }

// Vectors of channels that are loaded together: the coefficients of as many stay in registers, up
// to four each.
constexpr int kFillVectors = kVectorRegisters == 32 ? 4 : 2;

// How far ahead pixels are asked for: 16 of 4 vectors are 64 cache lines.
constexpr int64_t kRowsAhead = 16;

template <class T, int V, class Load, class At>
CWK_INLINE void fill_vectors(const Load& load, const At& at, const Band& band, int64_t c,
                             int64_t left, T* patch, int64_t pitch) {
  using Channel = decltype(load.channel(c, left));
  const auto fill = [&](const auto&... channel) {
    const Channel channels[] = {channel...};
    for (int64_t p = 0; p < band.pixels; ++p) {
      const int64_t from = at(band.begin + p), ahead = at(band.begin + p + kRowsAhead) + c;
      unroll<V>([&](auto v) {
        load.prefetch(ahead + v * kLanes<T>);
        store(patch + p * pitch + v * kLanes<T>, channels[v](from));
      });
    }
  };
  const auto channel = [&](int v) { return load.channel(c + v * kLanes<T>, left - v * kLanes<T>); };
  if constexpr (V == 4) {
    fill(channel(0), channel(1), channel(2), channel(3));
  } else if constexpr (V == 2) {
    fill(channel(0), channel(1));
  } else {
    fill(channel(0));
  }
}

// Channels [first, first + count) of a band, each vector as load(at(pixel), c, left) gives it, into
// patch[pixel][pitch], zeros up to whole vectors.
template <class T, class Load, class At>
CWK_FLATTEN inline void fill_rows(const Load& load, const At& at, const Band& band, int64_t first,
                                  int64_t count, T* patch, int64_t pitch) {
  constexpr int64_t kWide = kFillVectors * kLanes<T>;
  int64_t c = 0;
  for (; c + kWide <= count; c += kWide) {
    fill_vectors<T, kFillVectors>(load, at, band, first + c, kWide, patch + c, pitch);
  }
  for (; c < count; c += kLanes<T>) {
    fill_vectors<T, 1>(load, at, band, first + c, count - c, patch + c, pitch);
  }
}

// Weights as panels of [depth][panel width], zeros past the last target channel.
template <class T>
struct Panels {
  T* data;
  int64_t depth, channels, padded;

  Panels(int64_t depth, int64_t channels, Arena& arena)
      : depth(depth), channels(channels), padded(padded_channels<T>(channels)) {
    data = arena.take<T>(depth * padded);
  }

  int64_t count() const { return ceil_div(padded, kPanelWidth<T>); }
  int64_t width(int64_t panel) const {
    return min(kPanelWidth<T>, padded - panel * kPanelWidth<T>);
  }
  T* at(int64_t panel, int64_t k) const {
    return data + panel * kPanelWidth<T> * depth + k * width(panel);
  }

  // weight[channels][depth] going forward, where it is transposed, else weight[depth][channels].
  void pack(const Parallel& parallel, const T* weight, bool transpose) const {
    parallel_for(parallel, count(), [&](int64_t panel) {
      transpose ? pack_transposed(weight, panel) : pack_plain(weight, panel);
    });
  }

 private:
  CWK_FLATTEN void pack_plain(const T* weight, int64_t panel) const {
    const int64_t first = panel * kPanelWidth<T>;
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t n = 0; n < width(panel); n += kLanes<T>) {
        store(at(panel, k) + n,
              load_channels(weight + k * channels + first + n, channels - first - n));
      }
    }
  }

  CWK_FLATTEN void pack_transposed(const T* weight, int64_t panel) const {
    const int64_t wide = width(panel);
    for (int64_t n = 0; n < wide; n += kLanes<T>) {
      const int64_t first = panel * kPanelWidth<T> + n;
      const int64_t whole = first + kLanes<T> <= channels ? depth / kLanes<T> * kLanes<T> : 0;
      for (int64_t k = 0; k < whole; k += kLanes<T>) {
        Vector<T> rows[kLanes<T>];
        unroll<kLanes<T>>([&](auto i) { rows[i] = load(weight + (first + i) * depth + k); });
        transpose<T>(rows);
        unroll<kLanes<T>>([&](auto i) { store(at(panel, k + i) + n, rows[i]); });
      }
      for (int64_t k = whole; k < depth; ++k) {
        T* to = at(panel, k) + n;
        for (int64_t i = 0; i < kLanes<T>; ++i) {
          to[i] = first + i < channels ? weight[(first + i) * depth + k] : T(0);
        }
      }
    }
  }
};

// target[pixel][...] = patch[pixel][0 .. depth) times a panel from its row `k` on, added to what is
// there if `more`: sums that are cut are the same, bit for bit, however they are cut.
template <class T, int V>
CWK_INLINE void multiply_panel(const T* patch, int64_t pitch, int64_t pixels, int64_t depth,
                               const T* panel, T* target, int64_t target_pitch, bool more) {
  const TapRows rows{1, 1, depth, {}};
  for (int64_t begin = 0; begin < pixels; begin += kBlockPixels) {
    // Past the band's end the last pixel is computed again.
    const T* pixel[kBlockPixels];
    T* to[kBlockPixels];
    unroll<kBlockPixels>([&](auto i) {
      const int64_t p = min(begin + i, pixels - 1);
      pixel[i] = patch + p * pitch;
      to[i] = target + p * target_pitch;
    });
    Vector<T> acc[1][kBlockPixels][V] = {};
    if (more) {
      unroll<kBlockPixels>(
          [&](auto i) { unroll<V>([&](auto v) { acc[0][i][v] = load(to[i] + v * kLanes<T>); }); });
    }
    dense_block<T, V, 1>(pixel, 0, rows, panel, acc);
    unroll<kBlockPixels>(
        [&](auto i) { unroll<V>([&](auto v) { store(to[i] + v * kLanes<T>, acc[0][i][v]); }); });
  }
}

// One panel of weights over a band. `target` begins at the panel's first channel; whole vectors are
// written.
template <class T>
CWK_FLATTEN inline void multiply(const T* patch, int64_t pitch, int64_t pixels, int64_t depth,
                                 const Panels<T>& panels, int64_t panel, int64_t k, T* target,
                                 int64_t target_pitch, bool more) {
  const T* weights = panels.at(panel, k);
  if (panels.width(panel) == kPanelWidth<T>) {
    multiply_panel<T, kPanelVectors>(patch, pitch, pixels, depth, weights, target, target_pitch,
                                     more);
  } else {
    multiply_panel<T, 1>(patch, pitch, pixels, depth, weights, target, target_pitch, more);
  }
}

// A forward 1 x 1 convolution: target[pixel][n] = sum over k of source[pixel][k] * weight[n][k],
// with the statistics of what it gives.
template <class T>
class PointwiseForward {
 public:
  PointwiseForward(const Parallel& parallel, int64_t pixels, int64_t depth, int64_t channels,
                   Arena& arena)
      : parallel_(parallel),
        pixels_(pixels),
        panels_(depth, channels, arena),
        bands_(band_count(pixels)),
        workers_(workers_for(parallel, bands_)) {
    pitch_ = pitch_of<T>(min(depth, kDepthBlock));
    patch_ = arena.take<T>(workers_ * kBandPixels * pitch_);
    tiles_ = arena.take<T>(workers_ * tile_count() * kTile);
    partials_ = arena.take<T>(bands_ * 2 * panels_.padded);
  }

  // `load` and `at` as for fill_rows; mean and variance [2][channels] go to `statistics` unless
  // that is null.
  template <class Load, class At>
  void run(const T* weight, const Load& load, const At& at, T* target, T* statistics) const {
    panels_.pack(parallel_, weight, true);
    run_tasks(parallel_, workers_, bands_, [&](int64_t index, int64_t worker) {
      convolve(index, worker, load, at, target, statistics != nullptr);
    });
    if (statistics) {
      merge_measures(
          partials_, bands_, [&](int64_t b) { return Band(b, pixels_).pixels; }, panels_.channels,
          statistics);
    }
  }

 private:
  // What a panel gives for a band: 16 KB, measured in L1, where the target's pixels, a power of two
  // apart, would share few sets. Sums that are cut need the tiles of all panels.
  static constexpr int64_t kTile = kBandPixels * kPanelWidth<T>;
  int64_t tile_count() const { return panels_.depth > kDepthBlock ? panels_.count() : 1; }

  template <class Load, class At>
  void convolve(int64_t index, int64_t worker, const Load& load, const At& at, T* target,
                bool measured) const {
    const Band band(index, pixels_);
    T* patch = patch_ + worker * kBandPixels * pitch_;
    T* partial = partials_ + index * 2 * panels_.padded;
    for (int64_t k = 0; k < panels_.depth; k += kDepthBlock) {
      const int64_t depth = min(kDepthBlock, panels_.depth - k);
      fill_rows<T>(load, at, band, k, depth, patch, pitch_);
      for (int64_t panel = 0; panel < panels_.count(); ++panel) {
        const int64_t first = panel * kPanelWidth<T>;
        T* tile = tiles_ + (worker * tile_count() + panel % tile_count()) * kTile;
        multiply(patch, pitch_, band.pixels, depth, panels_, panel, k, tile, kPanelWidth<T>, k > 0);
        if (k + depth < panels_.depth) continue;
        if (measured) measure_panel(tile, band.pixels, panel, partial + first);
        write(tile, band.pixels, min(kPanelWidth<T>, panels_.channels - first),
              target + band.begin * panels_.channels + first);
      }
    }
  }

  CWK_FLATTEN void write(const T* tile, int64_t pixels, int64_t count, T* to) const {
    const int64_t channels = panels_.channels;
    const bool whole = streams(to, channels, count);
    for (int64_t p = 0; p < pixels; ++p, tile += kPanelWidth<T>, to += channels) {
      for (int64_t c = 0; c < count; c += kLanes<T>) {
        whole ? stream(to + c, load(tile + c)) : store_channels(to + c, load(tile + c), count - c);
      }
    }
    if (whole) drain();
  }

  void measure_panel(const T* tile, int64_t pixels, int64_t panel, T* partial) const {
    T measured[2 * kPanelWidth<T>];
    const int64_t width = panels_.width(panel);
    measure(tile, pixels, kPanelWidth<T>, width, measured);
    for (int64_t c = 0; c < width; ++c) {
      partial[c] = measured[c];
      partial[panels_.padded + c] = measured[width + c];
    }
  }

  Parallel parallel_;
  int64_t pixels_;
  Panels<T> panels_;
  int64_t bands_, workers_, pitch_;
  T* patch_;
  T* tiles_;
  T* partials_;
};

}  // namespace cwkernels::CWK_ISA
