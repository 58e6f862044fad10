#include <cstring>

#include "../parts/simd.h"
#include "copy_rows.h"

namespace cwkernels::CWK_ISA {
namespace {

// 64 KB a task: far above the cost of handing one out, and a bank row of 64 x 64 x 3 x 3 floats
// (147 KB) is still shared between two cores.
constexpr int64_t kChunkBytes = 1 << 16;

}  // namespace

void copy_rows(const CopyRowsParams& params) {
  const char* bank = static_cast<const char*>(params.bank);
  char* output = static_cast<char*>(params.output);
  const int64_t chunks = ceil_div(params.row_bytes, kChunkBytes);
  parallel_for(params.parallel, params.num_rows * chunks, [&](int64_t task) {
    const int64_t i = task / chunks;
    const int64_t begin = task % chunks * kChunkBytes;
    const int64_t bytes = min(kChunkBytes, params.row_bytes - begin);
    std::memcpy(output + i * params.row_bytes + begin,
                bank + params.rows[i] * params.row_bytes + begin, static_cast<size_t>(bytes));
  });
}

}  // namespace cwkernels::CWK_ISA
