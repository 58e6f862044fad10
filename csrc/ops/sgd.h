#pragma once
#include <cstdint>

#include "../parts/isa.h"
#include "../parts/parallel.h"
#include "../parts/scratch.h"

// sgd: torch.optim.SGD's step with momentum, on rows of many tensors:
//   g = gradient + weight_decay * w;  m = momentum * m + g;  w = w - lr * m
// Rows that are not named are neither read nor written, so the time does not depend on how many
// there are. Shape comments: L tensors; of one of them S rows of M elements, U of them moved.
namespace cwkernels {

// What a group of tensors is moved by.
struct SgdOptions {
  double lr, momentum, weight_decay;
};
inline bool operator==(const SgdOptions& one, const SgdOptions& other) {
  return one.lr == other.lr && one.momentum == other.momentum &&
         one.weight_decay == other.weight_decay;
}

// One row to move; its gradient is the sum of `count` (perhaps no) entries, in their order.
struct SgdRow {
  int64_t row;    // in [0, S)
  int64_t first;  // of its entries, in SgdTarget.entries
  int64_t count;
};

struct SgdTarget {
  bool double_precision;  // float64, otherwise float32
  bool shared_buffer;   // one row of momentum for all; the rows take turns in the order of `moves`
  void* weight;         // [S, M]
  void* momentum;       // [S, M], or [1, M] if shared
  const void* grad;     // [entries, M]
  const SgdRow* moves;  // [U], each row once
  const int64_t* entries;  // where in `grad` the entries of the rows lie, in elements of M
  int64_t move_count;      // U
  int64_t row_size;        // M
  SgdOptions options;
};

struct SgdParams {
  const SgdTarget* targets;  // [L]
  int64_t target_count;      // L
  Parallel parallel;         // CPU only
  void* carry;               // CUDA only: sgd_cuda_scratch(params).bytes
};

// For rows of more gradients than one launch takes; mostly none. No tickets.
CudaScratch sgd_cuda_scratch(const SgdParams& params);
// Launches on `stream`, a cudaStream_t; all but what the tensors hold is read here, on the host.
// Returns the first launch's cudaError_t that is one.
int sgd_cuda(const SgdParams& params, void* stream);

}  // namespace cwkernels

CWK_DECLARE_CPU(void sgd(const SgdParams& params))
