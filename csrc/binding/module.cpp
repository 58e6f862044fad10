#include <torch/csrc/stable/library.h>

#include <atomic>
#include <cstdlib>
#include <string>

#include "../parts/machine.h"
#include "build_config.h"
#include "checks.h"
#include "cpu.h"

namespace cwkernels {
namespace {

std::string supported_names() {
  std::string names;
  for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (!supported(isa)) continue;
    if (!names.empty()) names += ",";
    names += kIsaNames[int(isa)];
  }
  return names;
}

Isa parse_isa(const char* source, const std::string& name) {
  for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (supported(isa) && name == kIsaNames[int(isa)]) return isa;
  }
  STD_TORCH_CHECK(false, source, ": wanted one of ", supported_names(),
                  " (what this machine runs), ", "got '", name, "'");
  return Isa::baseline;
}

Isa initial_isa() {
  if (const char* name = std::getenv("CWKERNELS_CPU_ISA")) {
    return parse_isa("CWKERNELS_CPU_ISA", name);
  }
  return supported(Isa::avx512) ? Isa::avx512 : supported(Isa::avx2) ? Isa::avx2 : Isa::baseline;
}

std::atomic<Isa>& current_isa() {
  static std::atomic<Isa> isa{initial_isa()};
  return isa;
}

std::string cpu_isa_name() { return kIsaNames[int(cpu_isa())]; }

void set_cpu_isa(std::string name) { current_isa() = parse_isa("set_cpu_isa: name", name); }

// What the build found and chose, as JSON.
std::string build_config() { return CWK_BUILD_CONFIG; }

}  // namespace

Isa cpu_isa() { return current_isa(); }

}  // namespace cwkernels

STABLE_TORCH_LIBRARY_FRAGMENT(cwkernels, m) {
  m.def("cpu_isa() -> str");
  m.def("cpu_isas() -> str");
  m.def("set_cpu_isa(str name) -> ()");
  m.def("build_config() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(cwkernels, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&cwkernels::cpu_isa_name));
  m.impl("cpu_isas", TORCH_BOX(&cwkernels::supported_names));
  m.impl("set_cpu_isa", TORCH_BOX(&cwkernels::set_cpu_isa));
  m.impl("build_config", TORCH_BOX(&cwkernels::build_config));
}
