#pragma once
#include <cstdint>

#include "sgd.h"

// sgd_slots: sgd, with rows that lie on the device and are read by the kernel. CUDA only.
// Shape comments: L tensors; of one of them S rows of M elements and U slots, of which some have
// gradients.
namespace cwkernels {

struct SgdSlotsTarget {
  bool double_precision;  // float64, otherwise float32
  bool shared_buffer;     // one row of momentum for all; the rows take turns in ascending order
  void* weight;           // [S, M]
  void* momentum;         // [S, M], or [1, M] if shared
  const void* grad;       // [entries, M], those of the first slots
  const int64_t* rows;    // [U], a slot whose row does not exist moves nothing; null: row 0
  int64_t sets, row_size, slots, entries;  // S, M, U
  SgdOptions options;
  const double* lr_on_device;  // null: it is that of the options
};

struct SgdSlotsParams {
  const SgdSlotsTarget* targets;  // [L]
  int64_t target_count;           // L
};

// Launches on `stream`, a cudaStream_t; `targets` are read here, on the host. Returns the first
// launch's cudaError_t that is one.
int sgd_slots_cuda(const SgdSlotsParams& params, void* stream);

}  // namespace cwkernels
