#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>
#include <vector>

#include "../ops/select.h"
#include "checks.h"

// What select and nb201_select check of their arguments, and make of them.
namespace cwkernels {

inline void check_count(const char* operation, const char* argument, int64_t got, int64_t least,
                        int64_t most) {
  CWK_CHECK(got >= least && got <= most, operation, argument,
            std::to_string(least) + " to " + std::to_string(most) + " entries", got);
}

// Integers that must fit a byte, whose `end` says what they number.
inline uint8_t checked_byte(const char* operation, const char* argument, int64_t value,
                            int64_t end) {
  CWK_CHECK(value >= 0 && value < end, operation, argument,
            "numbers in [0, " + std::to_string(end) + ")", value);
  return static_cast<uint8_t>(value);
}

inline void set_maps(const char* operation, SelectParams& params, const Tensor& arch,
                     const std::vector<Tensor>& maps) {
  for (size_t d = 0; d < maps.size(); ++d) {
    const Tensor& map = maps[d];
    CWK_CHECK(
        map.scalar_type() == torch::headeronly::ScalarType::Int && map.dim() == 1 &&
            map.is_contiguous() && map.device() == arch.device() && map.numel() > params.decisions,
        operation, "maps[" + std::to_string(d) + "]",
        "int32 [D + combinations] on the device of arch", dtype_name(map) + (" " + describe(map)));
    params.maps[d] = static_cast<const int32_t*>(map.const_data_ptr());
  }
}

// `codes` [D, most candidates], -1 behind the last candidate of a decision.
inline void set_codes(const char* operation, SelectParams& params,
                      const std::vector<int64_t>& codes) {
  const int64_t most = static_cast<int64_t>(codes.size()) / params.decisions;
  CWK_CHECK(most * params.decisions == static_cast<int64_t>(codes.size()), operation, "codes",
            "as many for each decision", codes.size());
  check_count(operation, "codes of a decision", most, 1, kSelectCandidates);
  for (int64_t d = 0; d < params.decisions; ++d) {
    for (int64_t choice = 0; choice < most; ++choice) {
      const int64_t code = codes[static_cast<size_t>(d * most + choice)];
      if (code < 0) break;
      params.codes[d][choice] = checked_byte(operation, "codes", code, 256);
      ++params.candidates[d];
    }
  }
}

// `edges` [D, 2], source and target of each decision, or nothing.
inline void set_edges(const char* operation, SelectParams& params,
                      const std::vector<int64_t>& edges) {
  if (edges.empty()) return;
  check_count(operation, "edges", static_cast<int64_t>(edges.size()), 2 * params.decisions,
              2 * params.decisions);
  for (int64_t d = 0; d < params.decisions; ++d) {
    const auto at = static_cast<size_t>(2 * d);
    params.sources[d] = checked_byte(operation, "edges", edges[at], kSelectDecisions);
    params.targets[d] = checked_byte(operation, "edges", edges[at + 1], kSelectDecisions);
    params.nodes = std::max(params.nodes, params.targets[d] + 1);
  }
}

// `norms` [R, 2], decision and code of each kind.
inline void set_norms(const char* operation, SelectParams& params,
                      const std::vector<int64_t>& norms) {
  check_count(operation, "norms", static_cast<int64_t>(norms.size()), 0, 2 * kSelectNorms);
  params.norms = static_cast<int32_t>(norms.size() / 2);
  for (int64_t r = 0; r < params.norms; ++r) {
    const auto at = static_cast<size_t>(2 * r);
    const int64_t decision = norms[at];
    CWK_CHECK(decision >= -1 && decision < params.decisions, operation, "norms",
              "decisions in [-1, " + std::to_string(params.decisions) + ")", decision);
    params.norm_of[r] = {static_cast<int8_t>(decision),
                         checked_byte(operation, "norms", norms[at + 1], 256)};
  }
}

// The parameters of a call, and what it returns, which they point to.
struct SelectCall {
  SelectParams params;
  Tensor selection, norm_rows;
};

inline SelectCall select_call(const char* operation, const Tensor& arch,
                              const std::vector<Tensor>& maps, const std::vector<int64_t>& codes,
                              const std::vector<int64_t>& edges, const std::vector<int64_t>& norms,
                              const Tensor& fault) {
  using torch::headeronly::ScalarType;
  CWK_CHECK(arch.scalar_type() == ScalarType::Long && arch.dim() == 2 && arch.is_contiguous() &&
                arch.size(0) > 0 && arch.size(1) == static_cast<int64_t>(maps.size()),
            operation, "arch", "contiguous int64 [A, " + std::to_string(maps.size()) + "]",
            dtype_name(arch) + (" " + describe(arch)));
  check_count(operation, "maps", static_cast<int64_t>(maps.size()), 1, kSelectDecisions);
  CWK_CHECK(fault.scalar_type() == ScalarType::Long && fault.numel() == 4 && fault.is_contiguous(),
            operation, "fault", "int64 [4]", dtype_name(fault) + (" " + describe(fault)));
  SelectParams params{};
  params.architectures = arch.size(0);
  params.decisions = static_cast<int32_t>(arch.size(1));
  set_maps(operation, params, arch, maps);
  set_codes(operation, params, codes);
  set_edges(operation, params, edges);
  set_norms(operation, params, norms);
  const Tensor selection = torch::stable::new_empty(
      arch, std::vector<int64_t>{params.architectures, params.decisions, 2}, ScalarType::Int);
  const Tensor norm_rows = torch::stable::new_empty(
      arch, std::vector<int64_t>{params.norms, params.architectures}, ScalarType::Int);
  params.arch = static_cast<const int64_t*>(arch.const_data_ptr());
  params.selection = static_cast<int32_t*>(selection.mutable_data_ptr());
  params.norm_rows = static_cast<int32_t*>(norm_rows.mutable_data_ptr());
  params.fault = static_cast<int64_t*>(fault.mutable_data_ptr());
  return {params, selection, norm_rows};
}

}  // namespace cwkernels
