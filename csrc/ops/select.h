#pragma once
#include <cstdint>

// select: what each architecture runs, from choices that lie on the device. CUDA only: on the CPU
// the host knows the choices. Shape comments: A architectures, D decisions, R kinds of batch norm.
namespace cwkernels {

constexpr int kSelectDecisions = 32;
constexpr int kSelectCandidates = 16;
constexpr int kSelectNorms = 128;

// A kind of batch norm: those behind the candidate `code` of `decision`, all of which are at the
// same row; those that every architecture runs at row 0 have decision -1.
struct SelectNorm {
  int8_t decision;
  uint8_t code;
};

struct SelectParams {
  const int64_t* arch;  // [A, D], the choice in each decision
  int32_t* selection;   // [A, D, 2], code and row
  int32_t* norm_rows;   // [R, A], -1: the architecture does not run this kind
  int64_t* fault;       // [4]: whether there is one, its architecture, its decision, the choice
  int64_t architectures;
  int32_t decisions, norms;
  // [D][D + combinations] each: what each decision's choice counts in the number of the
  // combination, and the row of each combination.
  const int32_t* maps[kSelectDecisions];
  uint8_t candidates[kSelectDecisions];  // how many there are
  uint8_t codes[kSelectDecisions][kSelectCandidates];
  // Decisions are the edges of a graph, sorted by target, and code 0 carries nothing: what cannot
  // carry anything from the first node to the last is not run. Without a graph `nodes` is 0.
  int32_t nodes;
  uint8_t sources[kSelectDecisions], targets[kSelectDecisions];
  SelectNorm norm_of[kSelectNorms];
};

// Launches on `stream`, a cudaStream_t. Returns the launch's cudaError_t.
int select_cuda(const SelectParams& params, void* stream);

}  // namespace cwkernels
