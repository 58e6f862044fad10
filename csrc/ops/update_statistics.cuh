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

struct StatisticsNorm {
  void* running_mean;
  void* running_var;
  int64_t* num_batches_tracked;
  const void* statistics;  // of the first architecture that `row` knows
  int32_t statistics_stride;
  int32_t values;  // n, that the statistics were taken over
  int32_t channels;
  // Rows known to the host: which of them are this one's. On the device: its place among the batch
  // norms, and how many rows it has.
  uint16_t first, count;
};
static_assert(sizeof(StatisticsNorm) == 48);

// Rows by value. As many as fit the 4 KB of a launch's parameters: 48 bytes a batch norm, 4 for
// each row of one.
constexpr int kStatisticsNorms = 48;
constexpr int kStatisticsRows = 440;

struct StatisticsLaunch {
  double momentum;
  StatisticsNorm norms[kStatisticsNorms];
  int32_t rows[kStatisticsRows];

  __device__ int64_t architectures(const StatisticsNorm& norm) const { return norm.count; }
  __device__ int64_t row(const StatisticsNorm& norm, int64_t a) const {
    return rows[norm.first + a];
  }
};
static_assert(sizeof(StatisticsLaunch) <= 4096);

// Rows by pointer: every batch norm is in the launch. The 78 of a NAS-Bench-201 network, 12 a cell,
// and Macro's 53 fit one.
constexpr int kStatisticsSlots = 84;
static_assert(kStatisticsSlots >= 6 * 12 + 6 && kStatisticsSlots >= 53);

struct StatisticsSlots {
  double momentum;
  const int32_t* rows;  // [L, A]
  int64_t count;        // A
  StatisticsNorm norms[kStatisticsSlots];

  __device__ int64_t architectures(const StatisticsNorm&) const { return count; }
  __device__ int64_t row(const StatisticsNorm& norm, int64_t a) const {
    const int64_t row = load_global(rows + norm.first * count + a);
    return row < norm.count ? row : -1;
  }
};
static_assert(sizeof(StatisticsSlots) <= 4096);

// In double, as on the CPU: it costs nothing here.
template <class T>
__device__ __forceinline__ void move_towards(T* running, T measured, double factor, double scale) {
  const double old = *running;
  *running = static_cast<T>(old + factor * (measured * scale - old));
}

template <class T, class Launch>
__global__ void __launch_bounds__(kStatisticsThreads) update_statistics_kernel(Launch l) {
  wait_for_previous();
  allow_next();
  const StatisticsNorm& norm = l.norms[blockIdx.x];
  const T* measured = static_cast<const T*>(norm.statistics);
  const double n = norm.values, unbias = norm.values > 1 ? n / (n - 1) : 1;
  const int64_t architectures = l.architectures(norm);
  for (int64_t a = 0; a < architectures; ++a, measured += norm.statistics_stride) {
    const int64_t row = l.row(norm, a);
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
      move_towards(var + c, measured[norm.channels + c], factor, unbias);
    }
    sync_block();
  }
}

// --- Host ----------------------------------------------------------------------------------------

template <class T>
StatisticsNorm statistics_norm(const StatisticsTarget& target, int64_t architecture, int64_t first,
                               int64_t count) {
  StatisticsNorm norm{};
  norm.running_mean = target.running_mean;
  norm.running_var = target.running_var;
  norm.num_batches_tracked = target.num_batches_tracked;
  norm.statistics =
      static_cast<const T*>(target.statistics) + architecture * target.statistics_stride;
  norm.statistics_stride = static_cast<int32_t>(target.statistics_stride);
  norm.values = static_cast<int32_t>(target.count);
  norm.channels = static_cast<int32_t>(target.channels);
  norm.first = static_cast<uint16_t>(first);
  norm.count = static_cast<uint16_t>(count);
  return norm;
}

// Collects batch norms of one dtype and launches them, as many as fit at a time. Base of the two
// ways to name rows.
template <class T, class Launch>
class StatisticsLaunches {
 public:
  StatisticsLaunches(double momentum, void* stream) : stream_(stream) { l_.momentum = momentum; }

  // Launches what was added; returns the first cudaError_t that is one.
  int run() {
    if (norms_ > 0 && error_ == 0) {
      error_ =
          launch(update_statistics_kernel<T, Launch>, {norms_}, kStatisticsThreads, 0, stream_, l_);
    }
    norms_ = rows_ = 0;
    return error_;
  }

 protected:
  Launch l_{};
  int norms_ = 0, rows_ = 0, error_ = 0;

 private:
  void* stream_;
};

template <class T>
class StatisticsByValue : public StatisticsLaunches<T, StatisticsLaunch> {
 public:
  using StatisticsLaunches<T, StatisticsLaunch>::StatisticsLaunches;

  void add(const StatisticsTarget& target, const int64_t* rows, int64_t architectures) {
    for (int64_t a = 0; a < architectures;) {
      if (rows[a] < 0) {
        ++a;
        continue;
      }
      if (this->norms_ == kStatisticsNorms || this->rows_ == kStatisticsRows) this->run();
      int64_t count = kStatisticsRows - this->rows_;
      if (count > architectures - a) count = architectures - a;
      this->l_.norms[this->norms_++] = statistics_norm<T>(target, a, this->rows_, count);
      for (int64_t i = 0; i < count; ++i) {
        this->l_.rows[this->rows_++] = static_cast<int32_t>(rows[a + i]);
      }
      a += count;
    }
  }
};

template <class T>
class StatisticsByPointer : public StatisticsLaunches<T, StatisticsSlots> {
 public:
  StatisticsByPointer(const UpdateStatisticsParams& p, void* stream)
      : StatisticsLaunches<T, StatisticsSlots>(p.momentum, stream) {
    this->l_.rows = p.device_rows;
    this->l_.count = p.architectures;
  }

  void add(const StatisticsTarget& target, int64_t place) {
    if (this->norms_ == kStatisticsSlots) this->run();
    this->l_.norms[this->norms_++] = statistics_norm<T>(target, 0, place, target.sets);
  }
};

}  // namespace cwkernels
