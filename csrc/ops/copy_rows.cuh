#pragma once
#include "../parts/portable.cuh"
#include "copy_rows.h"

namespace cwkernels {

constexpr int kCopyRowsThreads = 256;
// The hardware's limit of grid.y; more rows are walked by the kernel's loop.
constexpr int64_t kCopyRowsMost = 65535;

// Sixteen bytes, moved at once.
struct alignas(16) CopyWord {
  uint32_t values[4];
};

// Grid: (chunks of a row, rows asked for, 1). One thread moves one 16-byte word, so a warp moves
// 512 consecutive bytes: full 128-byte transactions both ways. Rows that are no multiple of 16
// bytes, or start off a 16-byte boundary, go word by word of 1 byte.
template <class Word>
__global__ void copy_rows_kernel(CopyRowsParams params) {
  wait_for_previous();
  const int64_t words = params.row_bytes / static_cast<int64_t>(sizeof(Word));
  const int64_t word = static_cast<int64_t>(blockIdx.x) * kCopyRowsThreads + threadIdx.x;
  if (word >= words) return;
  for (int64_t i = blockIdx.y; i < params.num_rows; i += gridDim.y) {
    const Word* source = static_cast<const Word*>(params.bank) + params.rows[i] * words;
    static_cast<Word*>(params.output)[i * words + word] = source[word];
  }
}

template <class Word>
int launch_copy_rows(const CopyRowsParams& params, void* stream) {
  const int64_t words = params.row_bytes / static_cast<int64_t>(sizeof(Word));
  const Grid grid{(words + kCopyRowsThreads - 1) / kCopyRowsThreads,
                  params.num_rows < kCopyRowsMost ? params.num_rows : kCopyRowsMost};
  return launch(copy_rows_kernel<Word>, grid, kCopyRowsThreads, 0, stream, params);
}

}  // namespace cwkernels
