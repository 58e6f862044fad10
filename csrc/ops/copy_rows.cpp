#include "copy_rows.h"

#include <vector>

#include "../binding/checks.h"
#include "../binding/cpu.h"
#include "../binding/registration.h"
#include "../binding/stream.h"

namespace cwkernels {
namespace {

CopyRowsParams prepare(const Tensor& bank, const Tensor& rows, Tensor& output) {
  CWK_CHECK(bank.dim() >= 1 && bank.is_contiguous(), "copy_rows", "bank",
            "a contiguous tensor [S, ...]", describe(bank));
  check_rows("copy_rows", rows, bank.size(0));
  check_same_device("copy_rows", "rows", rows, bank);
  std::vector<int64_t> shape(bank.sizes().begin(), bank.sizes().end());
  shape[0] = rows.numel();
  output = torch::stable::new_empty(bank, shape);
  CopyRowsParams params{};
  params.bank = bank.const_data_ptr();
  params.rows = static_cast<const int64_t*>(rows.const_data_ptr());
  params.output = output.mutable_data_ptr();
  params.num_rows = rows.numel();
  params.row_bytes = bank.size(0) == 0
                         ? 0
                         : bank.numel() / bank.size(0) * static_cast<int64_t>(bank.element_size());
  return params;
}

// dense_grad is for autograd, which reads it from the call; the copy itself does not depend on it.
Tensor copy_rows_cpu(const Tensor& bank, const Tensor& rows, bool /*dense_grad*/) {
  Tensor output;
  CopyRowsParams params = prepare(bank, rows, output);
  params.parallel = cpu_parallel();
  if (output.numel() > 0) CWK_CALL_CPU(cpu_isa(), copy_rows, params);
  return output;
}

#if CWK_WITH_CUDA
Tensor copy_rows_gpu(const Tensor& bank, const Tensor& rows, bool /*dense_grad*/) {
  const GpuCall call("copy_rows", bank);
  Tensor output;
  const CopyRowsParams params = prepare(bank, rows, output);
  if (output.numel() > 0) call.check(copy_rows_cuda(params, call.stream()));
  return output;
}
#endif

}  // namespace
}  // namespace cwkernels

CWK_SCHEMAS(m) { m.def("copy_rows(Tensor bank, Tensor rows, bool dense_grad) -> Tensor"); }

CWK_CPU_FUNCTIONS(m) { m.impl("copy_rows", TORCH_BOX(&cwkernels::copy_rows_cpu)); }

#if CWK_WITH_CUDA
CWK_GPU_FUNCTIONS(m) { m.impl("copy_rows", TORCH_BOX(&cwkernels::copy_rows_gpu)); }
#endif
