#pragma once
#include "copy_rows.h"

namespace cwkernels {

constexpr int kCopyRowsThreads = 256;

// Grid: (chunks of a row, rows asked for, 1). One thread moves one 16-byte word, so a warp moves
// 512 consecutive bytes: full 128-byte transactions both ways. Rows that are no multiple of 16
// bytes, or start off a 16-byte boundary, go word by word of 1 byte.
template <class Word>
__global__ void copy_rows_kernel(CopyRowsParams params) {
  const int64_t words = params.row_bytes / static_cast<int64_t>(sizeof(Word));
  const int64_t word = static_cast<int64_t>(blockIdx.x) * kCopyRowsThreads + threadIdx.x;
  if (word >= words) return;
  for (int64_t i = blockIdx.y; i < params.num_rows; i += gridDim.y) {
    const Word* source = static_cast<const Word*>(params.bank) + params.rows[i] * words;
    static_cast<Word*>(params.output)[i * words + word] = source[word];
  }
}

}  // namespace cwkernels
