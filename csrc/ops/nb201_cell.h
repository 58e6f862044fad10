#pragma once
#include <cstdint>

#include "../parts/parallel.h"

// nb201_cell: four nodes, six edges 0-1, 0-2, 1-2, 0-3, 1-3, 2-3; a node is the sum of its edges.
// Until a kernel fulfils this contract the operation is composed in cwkernels/ops/nb201_cell.py.
// Shape comments: A architectures, N images each, C channels, H x W pixels, S rows in a bank.
// Images are channels-last; strides are in elements.
namespace cwkernels {

constexpr int kCellEdges = 6;
constexpr int kCellConvolutions = 2;  // 1 x 1 and 3 x 3 of each edge

enum class CellCode : int64_t { none, skip, conv_1x1, conv_3x3, average_pool };

struct NB201CellParams {
  const void* input;         // [A or 1, N, H, W, C]
  const int64_t* selection;  // [A, 6, 2]: operation code and row of each edge
  const void* weights[kCellEdges][kCellConvolutions];       // [S, C, C, R, R] contiguous
  const void* projections[kCellEdges];                      // [S, C, C, 1, 1] of a skip, or null
  const void* running_mean[kCellEdges][kCellConvolutions];  // [S, C], read in evaluation
  const void* running_var[kCellEdges][kCellConvolutions];   // [S, C], read in evaluation

  void* output;             // [A, N, H, W, C]
  void* statistics;         // [A, 6, 2, C]: mean and biased variance; zero where nothing ran
  void* output_statistics;  // [A, 2, C]
  void* raw[kCellEdges];    // per architecture and edge [N, H, W, C], kept for backward, or null
  void* nodes[2];           // inner nodes that a convolution leaves, kept for backward, or null

  // backward
  const void* grad_output;                            // [A, N, H, W, C]
  void* grad_input;                                   // [A or 1, N, H, W, C]
  void* grad_weights[kCellEdges][kCellConvolutions];  // [U, C, C, R, R], one per distinct row
  void* grad_projections[kCellEdges];                 // [U, C, C, 1, 1]

  int64_t input_architecture_stride;  // 0: images shared by all architectures
  int64_t architectures, images, channels, height, width;
  double eps;
  bool training;           // normalise by batch statistics, each architecture's own
  bool count_include_pad;  // the average pool divides by 9 at the border too
  Parallel parallel;       // CPU only
};

}  // namespace cwkernels
