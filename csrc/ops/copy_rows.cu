#include <cuda_runtime.h>

#include "copy_rows.cuh"

namespace cwkernels {
namespace {

// grid.y's hardware limit; more rows are walked by the kernel's loop.
constexpr int64_t kMaxGridY = 65535;

template <class Word>
void launch(const CopyRowsParams& params, cudaStream_t stream) {
  const int64_t words = params.row_bytes / static_cast<int64_t>(sizeof(Word));
  const dim3 grid(static_cast<unsigned>((words + kCopyRowsThreads - 1) / kCopyRowsThreads),
                  static_cast<unsigned>(params.num_rows < kMaxGridY ? params.num_rows : kMaxGridY));
  copy_rows_kernel<Word><<<grid, kCopyRowsThreads, 0, stream>>>(params);
}

bool in_words_of_16(const CopyRowsParams& params) {
  const auto bits = reinterpret_cast<uintptr_t>(params.bank) |
                    reinterpret_cast<uintptr_t>(params.output) |
                    static_cast<uintptr_t>(params.row_bytes);
  return bits % 16 == 0;
}

}  // namespace

int copy_rows_cuda(const CopyRowsParams& params, void* stream) {
  if (in_words_of_16(params)) {
    launch<uint4>(params, static_cast<cudaStream_t>(stream));
  } else {
    launch<unsigned char>(params, static_cast<cudaStream_t>(stream));
  }
  return static_cast<int>(cudaGetLastError());
}

}  // namespace cwkernels
