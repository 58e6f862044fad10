#pragma once
#include "../ops/nb201_cell.h"
#include "average_pool.h"
#include "block_conv.h"
#include "measure.h"

// What both passes of a NAS-Bench-201 cell share: its edges, and convolutions of blocks of images.
namespace cwkernels::CWK_ISA {

constexpr int kCellSources[kCellEdges] = {0, 0, 1, 0, 1, 2};
constexpr int kCellTargets[kCellEdges] = {1, 2, 2, 3, 3, 3};

CWK_INLINE bool normalised(const CellEdge& edge) {
  return edge.code == CellCode::conv_1x1 || edge.code == CellCode::conv_3x3;
}
CWK_INLINE bool convolves(const CellEdge& edge) { return edge.bank >= 0; }
CWK_INLINE int64_t kernel_size(const CellEdge& edge) {
  return edge.code == CellCode::conv_3x3 ? 3 : 1;
}

// The sizes of a cell's images and of their blocks.
template <class T>
struct CellShape {
  NB201CellParams p;
  Blocks blocks;
  BlockShape patch;
  int64_t image_size, padded;

  explicit CellShape(const NB201CellParams& params)
      : p(params),
        blocks(make_blocks(p.images, p.height, p.width)),
        patch(make_block(blocks.per_block, p.height, p.width, p.channels, 1)),
        image_size(p.height * p.width * p.channels),
        padded(padded_channels<T>(p.channels)) {}

  int64_t size() const { return p.images * image_size; }
  int64_t block_offset(int64_t block) const { return blocks.first(block) * image_size; }
  int64_t block_pixels(int64_t block) const { return blocks.size(block) * p.height * p.width; }

  PoolShape pool() const { return {p.height, p.width, p.channels, p.count_include_pad}; }
  ConvShape conv(int64_t kernel_size) const {
    return make_conv(p.height, p.width, p.channels, p.channels, kernel_size, 1);
  }

  const T* input(int64_t a) const {
    return static_cast<const T*>(p.input) + (p.shared ? 0 : a * size());
  }
  T* statistics(int64_t a, int e) const {
    return static_cast<T*>(p.statistics) + (a * kCellEdges + e) * 2 * p.channels;
  }
  const T* weight(int e, const CellEdge& edge) const {
    const int64_t taps = kernel_size(edge) * kernel_size(edge);
    return static_cast<const T*>(p.weights[e][edge.bank]) +
           edge.row * p.channels * p.channels * taps;
  }

  // Mean and variance that an edge is normalised by.
  const T* mean(int64_t a, int e, const CellEdge& edge) const {
    if (p.training) return statistics(a, e);
    return static_cast<const T*>(p.running_mean[e][edge.bank]) + edge.row * p.channels;
  }
  const T* variance(int64_t a, int e, const CellEdge& edge) const {
    if (p.training) return statistics(a, e) + p.channels;
    return static_cast<const T*>(p.running_var[e][edge.bank]) + edge.row * p.channels;
  }
};

// Convolutions of 1 x 1 and 3 x 3 with weights of several edges, in one direction.
template <class T>
class CellConvolutions {
 public:
  CellConvolutions(const CellShape<T>& shape, ConvPass pass, Arena& arena)
      : parallel_(shape.p.parallel),
        one_(shape.conv(1), pass, shape.patch, arena),
        three_(shape.conv(3), pass, shape.patch, arena) {
    for (int e = 0; e < kCellEdges; ++e) packed_[e] = arena.take<T>(three_.packed_size());
  }

  // Writes the lists of pixels and packs the weights of all edges of a plan.
  void prepare(const CellShape<T>& shape, const CellPlan& plan) const {
    one_.prepare();
    three_.prepare();
    const int64_t tasks = max(one_.pack_tasks(), three_.pack_tasks());
    parallel_for(parallel_, kCellEdges * tasks, [&](int64_t job) {
      const int e = static_cast<int>(job / tasks);
      const CellEdge& edge = plan.edges[e];
      const BlockConvolution<T>& conv = of(edge);
      if (!convolves(edge) || job % tasks >= conv.pack_tasks()) return;
      conv.pack(shape.weight(e, edge), job % tasks, packed_[e]);
    });
  }

  void run(int e, const CellEdge& edge, const T* patch, int64_t images, T* target,
           bool accumulate) const {
    of(edge).run(packed_[e], patch, images, target, accumulate);
  }

 private:
  const BlockConvolution<T>& of(const CellEdge& edge) const {
    return kernel_size(edge) == 3 ? three_ : one_;
  }

  Parallel parallel_;
  BlockConvolution<T> one_, three_;
  T* packed_[kCellEdges];
};

}  // namespace cwkernels::CWK_ISA
