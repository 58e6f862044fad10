#pragma once
#include <cstdint>

#include "../parts/isa.h"
#include "../parts/parallel.h"
#include "../parts/scratch.h"

// nb201_cell: four nodes, six edges 0-1, 0-2, 1-2, 0-3, 1-3, 2-3; a node is the sum of its edges.
// Shape comments: A architectures, N images each, C channels, H x W pixels, S rows in a bank, U
// rows of it that the architectures read. Images are dense and channels-last.
namespace cwkernels {

constexpr int kCellEdges = 6;
constexpr int kCellNodes = 4;
constexpr int kCellSources[kCellEdges] = {0, 0, 1, 0, 1, 2};
constexpr int kCellTargets[kCellEdges] = {1, 2, 2, 3, 3, 3};
constexpr int kCellBanks = 3;  // of an edge: 1 x 1, 3 x 3, a skip's projection

enum class CellCode : int64_t { none, skip, conv_1x1, conv_3x3, average_pool };

// What one edge of one architecture runs.
struct CellEdge {
  CellCode code;  // none, too, if it cannot carry anything from the input to the output
  int64_t bank;   // of kCellBanks, or -1: no weights
  int64_t row;    // in that bank
  int64_t raw;    // where its raw output is kept: a row of `kept`, or -1
  int64_t slot;   // backward: the row of the gradient of its bank, in [0, U)
  bool again;     // backward: an earlier architecture has written that row
};

struct CellPlan {
  CellEdge edges[kCellEdges];
  int64_t origins[kCellNodes];  // the node whose value a node is: itself but for a lone skip
  int64_t nodes[kCellNodes];    // where an inner node is kept: a row of `kept`, or -1
};

// What nb201_plan leaves of an architecture on the device.
constexpr int64_t kCellPlanInts = 87;
constexpr int64_t kCellKept = kCellEdges + 2;

struct NB201CellParams {
  const void* input;                                     // [A or 1, N, H, W, C]
  const CellPlan* plans;                                 // [A], or null, and then
  const void* planned;                                   // int32 [A, kCellPlanInts]: CUDA only
  const void* weights[kCellEdges][kCellBanks];           // [S, C, C, R, R] contiguous, or null
  const void* running_mean[kCellEdges][kCellBanks - 1];  // [S, C], read in evaluation
  const void* running_var[kCellEdges][kCellBanks - 1];   // [S, C], read in evaluation

  void* output;             // [A, N, H, W, C]
  void* statistics;         // [A, 6, 2, C]: mean and biased variance, written where measured
  void* output_statistics;  // [A, 2, C], written in training
  void* kept;               // rows [N, H, W, C] for backward, or null: nothing is kept. With
                            // `planned` kCellKept for each architecture

  // backward
  const void* grad_output;                     // [A, N, H, W, C]
  void* grad_input;                            // [A or 1, N, H, W, C]
  void* grad_weights[kCellEdges][kCellBanks];  // [U, C, C, R, R]; with `planned` U is A, and
  int64_t* rows;                               // [6 banks_per_edge, A]: the row of each, or -1
  int64_t banks_per_edge;
  bool need_weights;  // else grad_weights are not written

  bool shared;  // the input is one batch for all architectures, its gradient their sum in order
  int64_t architectures, images, channels, height, width;
  double eps;
  bool training;           // normalise by batch statistics, each architecture's own
  bool count_include_pad;  // the average pool divides by 9 at the border too
  bool winograd;           // 3 x 3 convolutions may run by Winograd's method (precision "high")
  bool double_precision;   // all tensors are float64, otherwise float32
  bool bf16_images;        // but for images and their gradients, which are bf16 then: CUDA only
  Parallel parallel;       // CPU only
  void* workspace;         // nb201_cell_workspace(params) bytes, 64-byte aligned; CUDA: its scratch
  unsigned* tickets;       // CUDA only: of its scratch
};

// What the launches of these params need, workspace and tickets set or not.
CudaScratch nb201_cell_cuda_scratch(const NB201CellParams& params);
CudaScratch nb201_cell_backward_cuda_scratch(const NB201CellParams& params);
// Launch on `stream`, a cudaStream_t. Return the first launch's cudaError_t that is one.
int nb201_cell_cuda(const NB201CellParams& params, void* stream);
int nb201_cell_backward_cuda(const NB201CellParams& params, void* stream);

}  // namespace cwkernels

CWK_DECLARE_CPU(int64_t nb201_cell_workspace(const NB201CellParams& params))
CWK_DECLARE_CPU(void nb201_cell(const NB201CellParams& params))
CWK_DECLARE_CPU(int64_t nb201_cell_backward_workspace(const NB201CellParams& params))
CWK_DECLARE_CPU(void nb201_cell_backward(const NB201CellParams& params))
