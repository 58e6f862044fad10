#include "copy_rows.cuh"

namespace cwkernels {

int copy_rows_cuda(const CopyRowsParams& params, void* stream) {
  const auto bits = reinterpret_cast<uintptr_t>(params.bank) |
                    reinterpret_cast<uintptr_t>(params.output) |
                    static_cast<uintptr_t>(params.row_bytes);
  return bits % 16 == 0 ? launch_copy_rows<CopyWord>(params, stream)
                        : launch_copy_rows<unsigned char>(params, stream);
}

}  // namespace cwkernels
