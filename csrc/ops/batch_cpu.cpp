#include "../parts/tasks.h"
#include "batch.h"

namespace cwkernels::CWK_ISA {
namespace {

// A uint8 has 256 values, and a channel normalises each to one float: 3 KB for three channels,
// which stay in L1 and take less than a quarter of one image's conversions and divisions to make.
constexpr int64_t kValues = 256;

// Images in a task: some 3 µs each.
constexpr int64_t kTaskImages = 8;

CWK_FLATTEN void make_table(const BatchParams& p, float* table) {
  for (int64_t c = 0; c < p.channels; ++c) {
    const float mean = p.mean[c], deviation = p.deviation[c];
    for (int64_t value = 0; value < kValues; ++value) {
      table[c * kValues + value] = (static_cast<float>(value) - mean) / deviation;
    }
  }
}

// One row of an image in one channel. The content of `from` begins `right` pixels into the row.
CWK_INLINE void write_row(const uint8_t* from, int64_t width, int64_t right, bool flip,
                          const float* table, int64_t channels, float* to) {
  const int64_t begin = max(right, 0), end = width + min(right, 0);
  int64_t x = 0;
  for (; x < begin; ++x) to[x * channels] = table[0];
  if (flip) {
    for (; x < end; ++x) to[x * channels] = table[from[width - 1 + right - x]];
  } else {
    for (; x < end; ++x) to[x * channels] = table[from[x - right]];
  }
  for (; x < width; ++x) to[x * channels] = table[0];
}

CWK_FLATTEN void write_image(const BatchParams& p, const float* table, int64_t n) {
  const int64_t pixels = p.height * p.width;
  const uint8_t* image = p.images + p.indices[n] * p.channels * pixels;
  float* output = p.output + n * p.channels * pixels;
  const bool flip = p.flips != nullptr && p.flips[n];
  int64_t down = 0, right = 0;
  if (p.shifts != nullptr) {
    down = max(-p.height, min(p.height, p.shifts[2 * n]));
    right = max(-p.width, min(p.width, p.shifts[2 * n + 1]));
  }
  for (int64_t y = 0; y < p.height; ++y) {
    const int64_t row = y - down;
    const bool inside = row >= 0 && row < p.height;
    for (int64_t c = 0; c < p.channels; ++c) {
      const uint8_t* from = image + c * pixels + (inside ? row * p.width : 0);
      // A row outside is one whose content lies beyond its end.
      write_row(from, p.width, inside ? right : p.width, flip, table + c * kValues, p.channels,
                output + y * p.width * p.channels + c);
    }
  }
}

}  // namespace

int64_t batch_workspace(const BatchParams& p) {
  return p.channels * kValues * static_cast<int64_t>(sizeof(float));
}

void batch(const BatchParams& p) {
  float* table = static_cast<float*>(p.workspace);
  make_table(p, table);
  const int64_t tasks = ceil_div(p.count, kTaskImages);
  parallel_for(p.parallel, tasks, [&](int64_t task) {
    const int64_t end = min((task + 1) * kTaskImages, p.count);
    for (int64_t n = task * kTaskImages; n < end; ++n) write_image(p, table, n);
  });
}

}  // namespace cwkernels::CWK_ISA
