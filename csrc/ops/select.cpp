#include "select.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "../binding/checks.h"
#include "../binding/registration.h"
#include "../binding/stream.h"

#if CWK_WITH_CUDA
namespace cwkernels {
namespace {

using torch::headeronly::ScalarType;
using Integers = std::vector<int64_t>;
using Selected = std::tuple<Tensor, Tensor>;

constexpr const char* kName = "select";

void check_length(const char* argument, int64_t got, int64_t least, int64_t most) {
  CWK_CHECK(got >= least && got <= most, kName, argument,
            std::to_string(least) + " to " + std::to_string(most) + " entries", got);
}

// Integers that must fit a byte, whose `end` says what they number.
uint8_t checked_byte(const char* argument, int64_t value, int64_t end) {
  CWK_CHECK(value >= 0 && value < end, kName, argument,
            "numbers in [0, " + std::to_string(end) + ")", value);
  return static_cast<uint8_t>(value);
}

void set_maps(SelectParams& params, const Tensor& arch, const std::vector<Tensor>& maps) {
  for (size_t d = 0; d < maps.size(); ++d) {
    const Tensor& map = maps[d];
    CWK_CHECK(map.scalar_type() == ScalarType::Int && map.dim() == 1 && map.is_contiguous() &&
                  map.device() == arch.device() && map.numel() > params.decisions,
              kName, "maps[" + std::to_string(d) + "]",
              "int32 [D + combinations] on the device of arch",
              dtype_name(map) + (" " + describe(map)));
    params.maps[d] = static_cast<const int32_t*>(map.const_data_ptr());
  }
}

// `codes` [D, most candidates], -1 behind the last candidate of a decision.
void set_codes(SelectParams& params, const Integers& codes) {
  const int64_t most = static_cast<int64_t>(codes.size()) / params.decisions;
  CWK_CHECK(most * params.decisions == static_cast<int64_t>(codes.size()), kName, "codes",
            "as many for each decision", codes.size());
  check_length("codes of a decision", most, 1, kSelectCandidates);
  for (int64_t d = 0; d < params.decisions; ++d) {
    for (int64_t choice = 0; choice < most; ++choice) {
      const int64_t code = codes[static_cast<size_t>(d * most + choice)];
      if (code < 0) break;
      params.codes[d][choice] = checked_byte("codes", code, 256);
      ++params.candidates[d];
    }
  }
}

// `edges` [D, 2], source and target of each decision, or nothing.
void set_edges(SelectParams& params, const Integers& edges) {
  if (edges.empty()) return;
  check_length("edges", static_cast<int64_t>(edges.size()), 2 * params.decisions,
               2 * params.decisions);
  for (int64_t d = 0; d < params.decisions; ++d) {
    const auto at = static_cast<size_t>(2 * d);
    params.sources[d] = checked_byte("edges", edges[at], kSelectDecisions);
    params.targets[d] = checked_byte("edges", edges[at + 1], kSelectDecisions);
    params.nodes = std::max(params.nodes, params.targets[d] + 1);
  }
}

// `norms` [R, 2], decision and code of each kind.
void set_norms(SelectParams& params, const Integers& norms) {
  check_length("norms", static_cast<int64_t>(norms.size()), 0, 2 * kSelectNorms);
  params.norms = static_cast<int32_t>(norms.size() / 2);
  for (int64_t r = 0; r < params.norms; ++r) {
    const auto at = static_cast<size_t>(2 * r);
    const int64_t decision = norms[at];
    CWK_CHECK(decision >= -1 && decision < params.decisions, kName, "norms",
              "decisions in [-1, " + std::to_string(params.decisions) + ")", decision);
    params.norm_of[r] = {static_cast<int8_t>(decision), checked_byte("norms", norms[at + 1], 256)};
  }
}

Selected select_gpu(const Tensor& arch, std::vector<Tensor> maps, Integers codes, Integers edges,
                    Integers norms, const Tensor& fault) {
  const GpuCall call(kName, arch);
  CWK_CHECK(arch.scalar_type() == ScalarType::Long && arch.dim() == 2 && arch.is_contiguous() &&
                arch.size(0) > 0 && arch.size(1) == static_cast<int64_t>(maps.size()),
            kName, "arch", "contiguous int64 [A, " + std::to_string(maps.size()) + "]",
            dtype_name(arch) + (" " + describe(arch)));
  check_length("maps", static_cast<int64_t>(maps.size()), 1, kSelectDecisions);
  CWK_CHECK(fault.scalar_type() == ScalarType::Long && fault.numel() == 4 && fault.is_contiguous(),
            kName, "fault", "int64 [4]", dtype_name(fault) + (" " + describe(fault)));
  SelectParams params{};
  params.architectures = arch.size(0);
  params.decisions = static_cast<int32_t>(arch.size(1));
  set_maps(params, arch, maps);
  set_codes(params, codes);
  set_edges(params, edges);
  set_norms(params, norms);
  const Tensor selection = torch::stable::new_empty(
      arch, Integers{params.architectures, params.decisions, 2}, ScalarType::Int);
  const Tensor norm_rows =
      torch::stable::new_empty(arch, Integers{params.norms, params.architectures}, ScalarType::Int);
  params.arch = static_cast<const int64_t*>(arch.const_data_ptr());
  params.selection = static_cast<int32_t*>(selection.mutable_data_ptr());
  params.norm_rows = static_cast<int32_t*>(norm_rows.mutable_data_ptr());
  params.fault = static_cast<int64_t*>(fault.mutable_data_ptr());
  call.check(select_cuda(params, call.stream()));
  return {selection, norm_rows};
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
