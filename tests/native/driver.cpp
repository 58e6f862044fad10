#include <cstdio>
#include <cstdlib>
#include <new>
#include <string_view>
#include <thread>

#include "../../csrc/parts/machine.h"
#include "native.h"
#include "plants.h"

// driver [ISA] [PLANT]: runs all cases on one instruction set or all that this machine runs, or one
// planted bug. driver --isas prints the instruction sets.
namespace native {
namespace {

struct Entry {
  const char* name;
  void (*run)(Isa isa);
};

std::vector<Entry>& operations() {
  static std::vector<Entry> entries;
  return entries;
}

int cases = 0, failures = 0;

void in_order(int64_t count, cwkernels::ParallelBody body, void* context) {
  body(0, count, context);
}

void backwards(int64_t count, cwkernels::ParallelBody body, void* context) {
  for (int64_t i = count - 1; i >= 0; --i) body(i, i + 1, context);
}

void on_threads(int64_t count, cwkernels::ParallelBody body, void* context) {
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([=] {
      for (int64_t i = t; i < count; i += kThreads) body(i, i + 1, context);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

void run_all(Isa isa) {
  for (const Entry& operation : operations()) {
    const int before = cases;
    operation.run(isa);
    std::printf("%s: %s: %d cases\n", cwkernels::kIsaNames[int(isa)], operation.name,
                cases - before);
    if (cases == before) report(operation.name, false);
  }
}

}  // namespace

Operation::Operation(const char* name, void (*run)(Isa isa)) {
  operations().push_back({name, run});
}

constexpr std::align_val_t kWorkspaceAlignment{64};

Workspace::Workspace(int64_t bytes)
    : data_(::operator new(static_cast<size_t>(bytes), kWorkspaceAlignment)) {
  std::memset(data_, 0xff, static_cast<size_t>(bytes));
}

Workspace::~Workspace() { ::operator delete(data_, kWorkspaceAlignment); }

const std::vector<Parallel>& schedules() {
  static const std::vector<Parallel> all{
      {kThreads, in_order}, {kThreads, backwards}, {kThreads, on_threads}};
  return all;
}

void report(const std::string& name, bool passed) {
  ++cases;
  if (passed) return;
  ++failures;
  std::printf("FAILED  %s\n", name.c_str());
}

}  // namespace native

int main(int count, char** arguments) {
  using cwkernels::Isa;
  const std::string_view wanted = count > 1 ? arguments[1] : "";
  bool known = false;
  for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    const char* name = cwkernels::kIsaNames[int(isa)];
    if (!cwkernels::supported(isa)) continue;
    if (wanted == "--isas") std::printf("%s\n", name);
    known |= wanted.empty() || wanted == "--isas" || wanted == name;
    if (!wanted.empty() && wanted != name) continue;
    if (count > 2) return native::run_plant(isa, arguments[2]);
    native::run_all(isa);
  }
  if (!known) std::fprintf(stderr, "driver: this machine does not run %s\n", arguments[1]);
  return known && native::failures == 0 ? 0 : 1;
}
