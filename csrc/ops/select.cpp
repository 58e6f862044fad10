#include "select.h"

#include <tuple>
#include <vector>

#include "../binding/registration.h"
#include "../binding/select_call.h"
#include "../binding/stream.h"

#if CWK_WITH_CUDA
namespace cwkernels {
namespace {

using Integers = std::vector<int64_t>;

std::tuple<Tensor, Tensor> select_gpu(const Tensor& arch, std::vector<Tensor> maps, Integers codes,
                                      Integers edges, Integers norms, const Tensor& fault) {
  const GpuCall call("select", arch);
  const SelectCall own = select_call("select", arch, maps, codes, edges, norms, fault);
  call.check(select_cuda(own.params, call.stream()));
  return {own.selection, own.norm_rows};
}

}  // namespace
}  // namespace cwkernels
#endif

CWK_SCHEMAS(m) {
  m.def(
      "select(Tensor arch, Tensor[] maps, int[] codes, int[] edges, int[] norms, "
      "Tensor(a!) fault) -> (Tensor, Tensor)");
}

#if CWK_WITH_CUDA
CWK_GPU_FUNCTIONS(m) { m.impl("select", TORCH_BOX(&cwkernels::select_gpu)); }
#endif
