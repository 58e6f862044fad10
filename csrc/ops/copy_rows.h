#pragma once
#include <cstdint>

#include "../parts/isa.h"
#include "../parts/parallel.h"

// copy_rows: output[i] = bank[rows[i]]. Rows are bytes, so one kernel serves every dtype.
// Shape comments: S rows in the bank, M rows asked for, B bytes a row.
namespace cwkernels {

struct CopyRowsParams {
  const void* bank;     // [S, B] bytes, contiguous
  const int64_t* rows;  // [M], each in [0, S)
  void* output;         // [M, B] bytes, contiguous
  int64_t num_rows;     // M
  int64_t row_bytes;    // B
  Parallel parallel;    // CPU only
};

// Launches on `stream`, a cudaStream_t. Returns the launch's cudaError_t.
int copy_rows_cuda(const CopyRowsParams& params, void* stream);

}  // namespace cwkernels

CWK_DECLARE_CPU(void copy_rows(const CopyRowsParams& params))
