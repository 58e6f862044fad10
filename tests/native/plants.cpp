#include "plants.h"

#include <cstdio>
#include <thread>

#include "../../csrc/ops/gather_conv.h"
#include "native.h"

namespace native {
namespace {

constexpr int64_t kPixels = 40, kChannels = 16;

// A 1 x 1 convolution of one row of pixels; `input_short` and `output_short` elements are missing.
int convolve(Isa isa, const Parallel& parallel, int64_t input_short, int64_t output_short) {
  const Buffer<float> input = random_values<float>(kPixels * kChannels - input_short, 1);
  const Buffer<float> weight = random_values<float>(kChannels * kChannels, 2);
  const Buffer<float> output(kPixels * kChannels - output_short);
  const Buffer<int64_t> rows{0};
  cwkernels::GatherConvParams p{};
  p.input = input.data();
  p.weight = weight.data();
  p.output = output.data();
  p.rows = rows.data();
  p.input_strides =
      p.output_strides = {kPixels * kChannels, kPixels * kChannels, kPixels * kChannels, kChannels};
  p.architectures = p.images = p.input_height = p.output_height = 1;
  p.input_width = p.output_width = kPixels;
  p.input_channels = p.output_channels = kChannels;
  p.kernel_size = p.stride = 1;
  p.parallel = parallel;
  const Workspace workspace(CWK_CALL_CPU(isa, gather_conv_workspace, p));
  p.workspace = workspace.data();
  CWK_CALL_CPU(isa, gather_conv, p);
  for (int64_t i = 0; i < output.size(); ++i) {
    if (std::isnan(output[i])) return std::puts("FAILED  a value was not written"), 1;
  }
  return 0;
}

int overflow(Isa isa) {
  cwkernels::GatherConvParams p{};
  p.architectures = p.images = p.kernel_size = p.stride = 1;
  p.input_height = p.output_height = p.input_width = p.output_width = 1;
  p.input_channels = p.output_channels = INT64_MAX;
  p.input_strides = p.output_strides = {1, 1, 1, 1};
  p.parallel = schedules().front();
  return CWK_CALL_CPU(isa, gather_conv_workspace, p) == INT64_MIN ? 1 : 0;
}

void twice(int64_t count, cwkernels::ParallelBody body, void* context) {
  std::thread other([=] { body(0, count, context); });
  body(0, count, context);
  other.join();
}

void without_the_last(int64_t count, cwkernels::ParallelBody body, void* context) {
  body(0, count - 1, context);
}

}  // namespace

int run_plant(Isa isa, std::string_view name) {
  if (name == "overrun") return convolve(isa, schedules().front(), 0, 1);
  if (name == "overread") return convolve(isa, schedules().front(), 1, 0);
  if (name == "overflow") return overflow(isa);
  if (name == "race") return convolve(isa, {kThreads, twice}, 0, 0);
  if (name == "wrong") return convolve(isa, {kThreads, without_the_last}, 0, 0);
  if (name == "none") return convolve(isa, schedules().front(), 0, 0);
  return 2;
}

}  // namespace native
