#include "../parts/bottleneck_backward.h"
#include "../parts/bottleneck_evaluation.h"
#include "../parts/bottleneck_forward.h"
#include "inverted_bottleneck.h"

namespace cwkernels::CWK_ISA {
namespace {

// Calls f with the pass of one architecture.
template <class T, class F>
void with_pass(const InvertedBottleneckParams& p, int64_t a, Arena& arena, const F& f) {
  const Choice<T> choice(p, a);
  const bool identity = choice.code == static_cast<int64_t>(BottleneckCode::identity);
  if (p.grad_output) {
    identity ? f(IdentityBackward<T>(choice, arena)) : f(BottleneckBackward<T>(choice, arena));
  } else if (identity) {
    f(IdentityForward<T>(choice, arena));
  } else if (p.training || p.kept) {
    f(BottleneckForward<T>(choice, arena));
  } else {
    f(BottleneckEvaluation<T>(choice, arena));
  }
}

template <class F>
void with_pass(const InvertedBottleneckParams& p, int64_t a, Arena& arena, const F& f) {
  p.double_precision ? with_pass<double>(p, a, arena, f) : with_pass<float>(p, a, arena, f);
}

}  // namespace

// The architectures run one after another in the same workspace.
int64_t inverted_bottleneck_workspace(const InvertedBottleneckParams& params) {
  int64_t bytes = 0;
  for (int64_t a = 0; a < params.architectures; ++a) {
    Arena arena(nullptr);
    with_pass(params, a, arena, [](auto&&) {});
    bytes = max(bytes, arena.used());
  }
  return bytes;
}

void inverted_bottleneck(const InvertedBottleneckParams& params) {
  for (int64_t a = 0; a < params.architectures; ++a) {
    Arena arena(params.workspace);
    with_pass(params, a, arena, [](auto&& pass) { pass.run(); });
  }
}

}  // namespace cwkernels::CWK_ISA
