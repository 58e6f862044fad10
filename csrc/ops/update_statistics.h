#pragma once
#include <cstdint>

#include "../parts/isa.h"

// update_statistics: batch statistics into running rows, the architectures in order.
// Shape comments: L batch norms, A architectures, S rows and C channels of a batch norm.
namespace cwkernels {

struct StatisticsTarget {
  bool double_precision;         // all but the counter are float64, otherwise float32
  void* running_mean;            // [S, C]
  void* running_var;             // [S, C], unbiased
  int64_t* num_batches_tracked;  // [S]
  const void* statistics;        // [A, 2, C] mean and biased variance
  int64_t statistics_stride;     // between architectures, in elements; 0: all measured the same
  int64_t sets, channels;        // S, C
  int64_t count;                 // values a channel that the statistics were taken over
};

struct UpdateStatisticsParams {
  const StatisticsTarget* targets;  // [L]
  // [L, A]; -1: the architecture did not run this batch norm. One of the two: on the host, or (CUDA
  // only) on the device, where rows that do not exist are passed over, too.
  const int64_t* rows;
  const int32_t* device_rows;
  int64_t norms, architectures;  // L, A
  double momentum;               // weight of the new batch; negative: exact average
};

// Launches on `stream`, a cudaStream_t; `targets` and `rows` are read here, on the host. Returns
// the first launch's cudaError_t that is one.
int update_statistics_cuda(const UpdateStatisticsParams& params, void* stream);

}  // namespace cwkernels

CWK_DECLARE_CPU(void update_statistics(const UpdateStatisticsParams& params))
