#include "../../../csrc/ops/batch.h"

#include "../native.h"

namespace {

using namespace native;

// Three images of five pixels by `width`, ten asked for.
void make(Isa isa, int64_t channels, int64_t width, bool moves) {
  const int64_t stored = 3, count = 10, height = 5, pixels = height * width;
  const Buffer<float> drawn = random_values<float>(stored * channels * pixels, 1);
  const Buffer<uint8_t> images(drawn.size());
  for (int64_t i = 0; i < images.size(); ++i)
    images[i] = static_cast<uint8_t>(128 + 127 * drawn[i]);
  const Buffer<int64_t> indices(count), shifts(2 * count);
  const Buffer<bool> flips(count);
  for (int64_t n = 0; n < count; ++n) {
    indices[n] = (n * 2 + 1) % stored;
    shifts[2 * n] = n % 7 - 3;
    shifts[2 * n + 1] = n == 4 ? INT64_MIN : 2 - n;
    flips[n] = n % 3 == 1;
  }
  const Buffer<float> mean = random_values<float>(channels, 2);
  const Buffer<float> deviation(channels);
  for (int64_t c = 0; c < channels; ++c) deviation[c] = static_cast<float>(2 + c);

  std::vector<double> wanted;
  for (int64_t n = 0; n < count; ++n) {
    for (int64_t i = 0; i < pixels * channels; ++i) {
      const int64_t c = i % channels, x = i / channels % width, y = i / channels / width;
      double value = 0;
      const double row = static_cast<double>(y) - (moves ? static_cast<double>(shifts[2 * n]) : 0);
      const double column =
          static_cast<double>(x) - (moves ? static_cast<double>(shifts[2 * n + 1]) : 0);
      if (row >= 0 && row < height && column >= 0 && column < width) {
        const int64_t from = static_cast<int64_t>(column);
        value = images[(indices[n] * channels + c) * pixels + static_cast<int64_t>(row) * width +
                       (moves && flips[n] ? width - 1 - from : from)];
      }
      wanted.push_back((value - mean[c]) / deviation[c]);
    }
  }
  check<float>("batch of " + std::to_string(channels) + " channels", wanted,
               [&](const Parallel& parallel) {
                 Buffer<float> output(count * channels * pixels);
                 cwkernels::BatchParams p{};
                 p.images = images.data();
                 p.indices = indices.data();
                 p.shifts = moves ? shifts.data() : nullptr;
                 p.flips = moves ? flips.data() : nullptr;
                 p.mean = mean.data();
                 p.deviation = deviation.data();
                 p.output = output.data();
                 p.stored = stored;
                 p.count = count;
                 p.channels = channels;
                 p.height = height;
                 p.width = width;
                 p.parallel = parallel;
                 const Workspace workspace(CWK_CALL_CPU(isa, batch_workspace, p));
                 p.workspace = workspace.data();
                 CWK_CALL_CPU(isa, batch, p);
                 return output;
               });
}

const Operation operation("batch", [](Isa isa) {
  for (const int64_t channels : {1, 3}) {
    for (const bool moves : {false, true}) make(isa, channels, 7, moves);
  }
});

}  // namespace
