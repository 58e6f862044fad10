#include "../../../csrc/ops/update_statistics.h"

#include "../native.h"

namespace {

using namespace native;

// One batch norm of `sets` rows; the running rows of mean and variance one behind the other.
template <class T>
void update(Isa isa, int64_t channels, double momentum, bool same, const std::string& name) {
  const int64_t sets = 3;
  const std::vector<int64_t> of{2, -1, 0, 2};
  const int64_t architectures = static_cast<int64_t>(of.size());
  const Buffer<T> before = random_values<T>(2 * sets * channels, 1);
  const Buffer<T> statistics = random_values<T>((same ? 1 : architectures) * 2 * channels, 2);
  const int64_t stride = same ? 0 : 2 * channels, count = 50;

  std::vector<double> wanted(before.data(), before.data() + before.size());
  std::vector<int64_t> batches(sets, 4);
  for (int64_t a = 0; a < architectures; ++a) {
    if (of[a] < 0) continue;
    const double factor = momentum < 0 ? 1.0 / static_cast<double>(++batches[of[a]]) : momentum;
    for (int64_t i = 0; i < 2 * channels; ++i) {
      double& running =
          wanted[(i < channels ? 0 : sets * channels) + of[a] * channels + i % channels];
      const double measured =
          statistics[a * stride + i] * (i < channels ? 1 : count / (count - 1.0));
      running += factor * (measured - running);
    }
  }
  check<T>(name, wanted, [&](const Parallel&) {
    Buffer<T> mean(sets * channels), var(sets * channels);
    std::copy_n(before.data(), mean.size(), mean.data());
    std::copy_n(before.data() + mean.size(), var.size(), var.data());
    const Buffer<int64_t> tracked{4, 4, 4};
    cwkernels::StatisticsTarget target{};
    target.double_precision = sizeof(T) == 8;
    target.running_mean = mean.data();
    target.running_var = var.data();
    target.num_batches_tracked = tracked.data();
    target.statistics = statistics.data();
    target.statistics_stride = stride;
    target.sets = sets;
    target.channels = channels;
    target.count = count;
    Buffer<int64_t> rows(architectures);
    std::copy(of.begin(), of.end(), rows.data());
    cwkernels::UpdateStatisticsParams params{};
    params.targets = &target;
    params.rows = rows.data();
    params.norms = 1;
    params.architectures = architectures;
    params.momentum = momentum;
    CWK_CALL_CPU(isa, update_statistics, params);
    Buffer<T> result(before.size());
    std::copy_n(mean.data(), mean.size(), result.data());
    std::copy_n(var.data(), var.size(), result.data() + mean.size());
    report(name + ", batches", tracked[0] == 5 && tracked[1] == 4 && tracked[2] == 6);
    return result;
  });
}

const Operation operation("update_statistics", [](Isa isa) {
  for (const int64_t channels : {1, 5, 16, 33}) {
    for (const double momentum : {0.1, -1.0}) {
      update<float>(isa, channels, momentum, false, "update_statistics, float");
      update<double>(isa, channels, momentum, true, "update_statistics, double");
    }
  }
});

}  // namespace
