#include "nb201_select.h"

#include <tuple>
#include <vector>

#include "../binding/nb201_plan_call.h"
#include "../binding/registration.h"
#include "../binding/select_call.h"
#include "../binding/stream.h"

#if CWK_WITH_CUDA
namespace cwkernels {
namespace {

using Integers = std::vector<int64_t>;

constexpr const char* kName = "nb201_select";

std::tuple<Tensor, Tensor, Tensor> nb201_select_gpu(const Tensor& arch, std::vector<Tensor> maps,
                                                    Integers codes, Integers edges, Integers norms,
                                                    Integers rows, int64_t per_edge,
                                                    const Tensor& fault) {
  const GpuCall call(kName, arch);
  const SelectCall select = select_call(kName, arch, maps, codes, edges, norms, fault);
  const NB201PlanCall plan = nb201_plan_call(kName, select.selection, rows, per_edge);
  call.check(nb201_select_cuda({select.params, plan.params}, call.stream()));
  return {select.selection, select.norm_rows, plan.plan};
}

}  // namespace
}  // namespace cwkernels
#endif

CWK_SCHEMAS(m) {
  m.def(
      "nb201_select(Tensor arch, Tensor[] maps, int[] codes, int[] edges, int[] norms, "
      "int[] rows, int per_edge, Tensor(a!) fault) -> (Tensor, Tensor, Tensor)");
}

#if CWK_WITH_CUDA
CWK_GPU_FUNCTIONS(m) { m.impl("nb201_select", TORCH_BOX(&cwkernels::nb201_select_gpu)); }
#endif
