#pragma once
#include "../parts/portable.cuh"
#include "update_statistics.h"

// All batch norms of a step in one launch, which is short: the 42 batch norms of a NAS-Bench-201
// network have 1,536 channels, Macro's 26 have 13,000, 12 bytes read and 8 written for each. A
// block takes one batch norm, so that its counter is read and written by one block, and a thread
// keeps to its channels through all architectures, so that their order is the thread's. What there
// is to do travels in the kernel's parameters: an address, a table and a copy fewer.
namespace cwkernels {

constexpr int kStatisticsThreads = 256;
// As many as fit the 4 KB of a launch's parameters: 56 bytes a batch norm, 4 for each row of one.
constexpr int kStatisticsNorms = 48;
constexpr int kStatisticsRows = 340;

struct StatisticsNorm {
  void* running_mean;
  void* running_var;
  int64_t* num_batches_tracked;
  const void* statistics;  // of the first architecture of `rows`
  int64_t statistics_stride;
  double unbias;  // n / (n - 1)
  int32_t channels;
  int16_t first, count;  // of its rows
};
static_assert(sizeof(StatisticsNorm) == 56);

struct StatisticsLaunch {
  double momentum;
  StatisticsNorm norms[kStatisticsNorms];
  int32_t rows[kStatisticsRows];  // -1: the architecture did not run this batch norm
};
static_assert(sizeof(StatisticsLaunch) <= 4096);

// In double, as on the CPU: it costs nothing here.
template <class T>
__device__ __forceinline__ void move_towards(T* running, T measured, double factor, double scale) {
  const double old = *running;
  *running = static_cast<T>(old + factor * (measured * scale - old));
}

template <class T>
__global__ void __launch_bounds__(kStatisticsThreads) update_statistics_kernel(StatisticsLaunch l) {
  wait_for_previous();
  allow_next();
  const StatisticsNorm& norm = l.norms[blockIdx.x];
  const T* measured = static_cast<const T*>(norm.statistics);
  for (int a = 0; a < norm.count; ++a, measured += norm.statistics_stride) {
    const int64_t row = l.rows[norm.first + a];
    if (row < 0) continue;
    // All threads read the counter before one writes it, and that before they read the next one.
    const int64_t batches = norm.num_batches_tracked[row] + 1;
    sync_block();
    if (threadIdx.x == 0) norm.num_batches_tracked[row] = batches;
    const double factor = l.momentum < 0 ? 1 / static_cast<double>(batches) : l.momentum;
    T* mean = static_cast<T*>(norm.running_mean) + row * norm.channels;
    T* var = static_cast<T*>(norm.running_var) + row * norm.channels;
    for (int c = static_cast<int>(threadIdx.x); c < norm.channels; c += kStatisticsThreads) {
      move_towards(mean + c, measured[c], factor, 1);
      move_towards(var + c, measured[norm.channels + c], factor, norm.unbias);
    }
    sync_block();
  }
}

// --- Host ----------------------------------------------------------------------------------------

// Collects batch norms of one dtype and launches them, as many as fit at a time.
template <class T>
class StatisticsLaunches {
 public:
  StatisticsLaunches(double momentum, void* stream) : stream_(stream) { l_.momentum = momentum; }

  void add(const StatisticsTarget& target, const int64_t* rows, int64_t architectures) {
    for (int64_t a = 0; a < architectures;) {
      if (rows[a] < 0) {
        ++a;
        continue;
      }
      if (norms_ == kStatisticsNorms || rows_ == kStatisticsRows) run();
      int64_t count = kStatisticsRows - rows_;
      if (count > architectures - a) count = architectures - a;
      append(target, rows + a, a, count);
      a += count;
    }
  }

  // Launches what was added; returns the first cudaError_t that is one.
  int run() {
    if (norms_ > 0 && error_ == 0) {
      error_ = launch(update_statistics_kernel<T>, {norms_}, kStatisticsThreads, 0, stream_, l_);
    }
    norms_ = rows_ = 0;
    return error_;
  }

 private:
  void append(const StatisticsTarget& target, const int64_t* rows, int64_t first, int64_t count) {
    const auto n = static_cast<double>(target.count);
    StatisticsNorm& norm = l_.norms[norms_++];
    norm.running_mean = target.running_mean;
    norm.running_var = target.running_var;
    norm.num_batches_tracked = target.num_batches_tracked;
    norm.statistics = static_cast<const T*>(target.statistics) + first * target.statistics_stride;
    norm.statistics_stride = target.statistics_stride;
    norm.unbias = target.count > 1 ? n / (n - 1) : 1;
    norm.channels = static_cast<int32_t>(target.channels);
    norm.first = static_cast<int16_t>(rows_);
    norm.count = static_cast<int16_t>(count);
    for (int64_t i = 0; i < count; ++i) l_.rows[rows_++] = static_cast<int32_t>(rows[i]);
  }

  StatisticsLaunch l_{};
  int norms_ = 0, rows_ = 0, error_ = 0;
  void* stream_;
};

}  // namespace cwkernels
