#pragma once
#include "../ops/nb201_cell.h"
#include "average_pool.h"
#include "block_conv.h"
#include "measure.h"
#include "winograd_weight.h"

// What both passes of a NAS-Bench-201 cell share: its edges, and convolutions of blocks of images.
namespace cwkernels::CWK_ISA {

// What convolves, in the order in which partial results lie.
constexpr CellCode kConvolutions[] = {CellCode::skip, CellCode::conv_1x1, CellCode::conv_3x3};

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
  bool winograd;
  BlockShape patch;
  int64_t image_size, padded;

  explicit CellShape(const NB201CellParams& params)
      : p(params),
        blocks(make_blocks(p.images, p.height, p.width)),
        winograd(p.winograd && winograd_pays<T>(p.height, p.width, p.channels, p.channels)),
        patch(make_block(blocks.per_block, p.height, p.width, p.channels, 1,
                         winograd ? kWinogradOutputs : 1)),
        image_size(p.height * p.width * p.channels),
        padded(padded_channels<T>(p.channels)) {}

  int64_t size() const { return p.images * image_size; }
  int64_t block_offset(int64_t block) const { return blocks.first(block) * image_size; }
  int64_t block_pixels(int64_t block) const { return blocks.size(block) * p.height * p.width; }

  PoolShape pool() const { return {p.height, p.width, p.channels, p.count_include_pad}; }
  ConvShape conv(int64_t kernel_size) const {
    return make_conv(p.height, p.width, p.channels, p.channels, kernel_size, 1);
  }

  WinogradShape winograd_shape(int64_t sources, int64_t targets) const {
    return {blocks.per_block, p.height,   p.width, patch.rows, patch.columns,
            p.channels,       p.channels, sources, targets};
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

// The convolutions of one kernel size that leave a node, in the order of their edges.
struct NodeEdges {
  int count;
  int edges[kCellNodes - 1];
};

CWK_INLINE NodeEdges edges_leaving(const CellPlan& plan, int node, CellCode code) {
  NodeEdges own{};
  for (int e = 0; e < kCellEdges; ++e) {
    if (kCellSources[e] == node && plan.edges[e].code == code && convolves(plan.edges[e])) {
      own.edges[own.count++] = e;
    }
  }
  return own;
}

// Convolutions with the weights of a plan's edges, in one direction. Winograd's take all 3 x 3 that
// leave a node at once: forward they share the transform of what they read, backward that of what
// they give.
template <class T>
class CellConvolutions {
 public:
  CellConvolutions(const CellShape<T>& shape, ConvPass pass, Arena& arena)
      : shape_(shape),
        forward_(pass == ConvPass::forward),
        one_(shape.conv(1), pass, shape.patch, arena),
        three_(shape.conv(3), pass, shape.patch, arena) {
    for (int e = 0; e < kCellEdges; ++e) {
      packed_[e] = arena.take<T>(shape.winograd ? one_.packed_size() : three_.packed_size());
    }
    for (int n = 0; n + 1 < kCellNodes; ++n) {
      const int64_t size = shape.winograd ? winograd(kCellNodes - 1 - n).packed_size() : 0;
      packed_nodes_[n] = arena.take<T>(size);
    }
  }

  // Elements that a worker needs while it runs.
  int64_t scratch_size() const {
    return shape_.winograd ? winograd(kCellNodes - 1).scratch_size() : 0;
  }

  // Writes the lists of pixels and packs the weights of all edges of a plan.
  void prepare(const CellPlan& plan) const {
    one_.prepare();
    three_.prepare();
    const int64_t tasks = max(one_.pack_tasks(), three_.pack_tasks());
    parallel_for(shape_.p.parallel, kCellEdges * tasks, [&](int64_t job) {
      const int e = static_cast<int>(job / tasks);
      const CellEdge& edge = plan.edges[e];
      const bool three = edge.code == CellCode::conv_3x3;
      const BlockConvolution<T>& conv = three ? three_ : one_;
      if (!convolves(edge) || (three && shape_.winograd) || job % tasks >= conv.pack_tasks()) {
        return;
      }
      conv.pack(shape_.weight(e, edge), job % tasks, packed_[e]);
    });
    for (int n = 0; shape_.winograd && n + 1 < kCellNodes; ++n) pack_node(plan, n);
  }

  // Forward: every convolution of this code that leaves a node, each to its own target.
  void run(const CellPlan& plan, int node, CellCode code, const T* patch, int64_t images,
           T* const (&targets)[kCellEdges], T* scratch) const {
    const NodeEdges own = edges_leaving(plan, node, code);
    if (code == CellCode::conv_3x3 && shape_.winograd && own.count > 0) {
      T* to[kCellNodes - 1];
      for (int i = 0; i < own.count; ++i) to[i] = targets[own.edges[i]];
      return winograd(own.count).run(packed_nodes_[node], &patch, images, to, false, scratch);
    }
    for (int i = 0; i < own.count; ++i) {
      direct(code).run(packed_[own.edges[i]], patch, images, targets[own.edges[i]], false);
    }
  }

  // Backward: the gradients that lie in the patches of the edges, summed into a node's.
  void run_back(const CellPlan& plan, int node, CellCode code, T* const (&patches)[kCellEdges],
                int64_t images, T* target, bool accumulate, T* scratch) const {
    const NodeEdges own = edges_leaving(plan, node, code);
    if (code == CellCode::conv_3x3 && shape_.winograd && own.count > 0) {
      const T* from[kCellNodes - 1];
      for (int i = 0; i < own.count; ++i) from[i] = patches[own.edges[i]];
      return winograd(own.count).run(packed_nodes_[node], from, images, &target, accumulate,
                                     scratch);
    }
    for (int i = 0; i < own.count; ++i) {
      const int e = own.edges[i];
      direct(code).run(packed_[e], patches[e], images, target, accumulate || i > 0);
    }
  }

 private:
  WinogradConvolution<T> winograd(int64_t count) const {
    return WinogradConvolution<T>(
        shape_.winograd_shape(forward_ ? 1 : count, forward_ ? count : 1));
  }

  const BlockConvolution<T>& direct(CellCode code) const {
    return code == CellCode::conv_3x3 ? three_ : one_;
  }

  void pack_node(const CellPlan& plan, int node) const {
    const NodeEdges own = edges_leaving(plan, node, CellCode::conv_3x3);
    if (own.count == 0) return;
    const T* weights[kCellNodes - 1];
    for (int i = 0; i < own.count; ++i) {
      weights[i] = shape_.weight(own.edges[i], plan.edges[own.edges[i]]);
    }
    const WinogradConvolution<T> all = winograd(own.count);
    parallel_for(shape_.p.parallel, all.pack_jobs(),
                 [&](int64_t job) { all.pack(weights, !forward_, job, packed_nodes_[node]); });
  }

  CellShape<T> shape_;
  bool forward_;
  BlockConvolution<T> one_, three_;
  T* packed_[kCellEdges];
  T* packed_nodes_[kCellNodes - 1];
};

// The gradients of the weights of all convolutions that leave a node: partial results of each
// worker, side by side.
template <class T>
class CellWeightGradients {
 public:
  CellWeightGradients(const CellShape<T>& shape, Arena& arena)
      : shape_(shape),
        one_(shape.conv(1), shape.patch, shape.patch, arena),
        three_(shape.conv(3), shape.patch, shape.patch, arena) {}

  void prepare() const {
    one_.prepare();
    three_.prepare();
  }

  // Elements of a worker's partial results of `edges` convolutions, and of its scratch.
  int64_t partial_size(int64_t edges) const {
    const int64_t direct = three_.partial_size();
    return edges * (shape_.winograd ? max(winograd(1).partial_size(), direct) : direct);
  }
  int64_t scratch_size() const {
    int64_t size = 0;
    for (int64_t count = 1; shape_.winograd && count < kCellNodes; ++count) {
      size = max(size, winograd(count).scratch_size());
    }
    return size;
  }

  // Adds a block to the partial results, or begins them with it.
  void accumulate(const CellPlan& plan, int node, CellCode code, const T* source,
                  T* const (&patches)[kCellEdges], int64_t images, bool begin, T* partial,
                  T* scratch) const {
    const NodeEdges own = edges_leaving(plan, node, code);
    partial += offset(plan, node, code);
    if (code == CellCode::conv_3x3 && shape_.winograd && own.count > 0) {
      const T* gradients[kCellNodes - 1];
      for (int i = 0; i < own.count; ++i) gradients[i] = patches[own.edges[i]];
      return winograd(own.count).accumulate(source, gradients, images, !begin, partial, scratch);
    }
    const BlockWeightGradient<T>& direct = code == CellCode::conv_3x3 ? three_ : one_;
    for (int i = 0; i < own.count; ++i, partial += partial_size(1)) {
      if (begin) clear(partial, direct.partial_size());
      direct.accumulate(source, patches[own.edges[i]], images, partial);
    }
  }

  // The workers' partial results, in order, into the rows of the banks.
  void reduce(const CellPlan& plan, int node, const T* partials, int64_t workers,
              int64_t worker_stride) const {
    for (const CellCode code : kConvolutions) {
      const NodeEdges own = edges_leaving(plan, node, code);
      const T* partial = partials + offset(plan, node, code);
      if (code == CellCode::conv_3x3 && shape_.winograd && own.count > 0) {
        reduce_winograd(plan, own, partial, workers, worker_stride);
        continue;
      }
      const BlockWeightGradient<T>& direct = code == CellCode::conv_3x3 ? three_ : one_;
      for (int i = 0; i < own.count; ++i, partial += partial_size(1)) {
        const WeightPartials<T> sums = direct.partials(partial, workers, worker_stride);
        const CellEdge& edge = plan.edges[own.edges[i]];
        T* to = gradient(own.edges[i], edge);
        parallel_for(shape_.p.parallel, sums.tasks(),
                     [&](int64_t task) { sums.reduce(task, edge.again, to); });
      }
    }
  }

 private:
  WinogradWeightGradient<T> winograd(int64_t count) const {
    return WinogradWeightGradient<T>(shape_.winograd_shape(1, count));
  }

  // Where the partial results of a code begin: skip's projections, 1 x 1, 3 x 3.
  int64_t offset(const CellPlan& plan, int node, CellCode code) const {
    int64_t before = 0;
    if (code != CellCode::skip) before += edges_leaving(plan, node, CellCode::skip).count;
    if (code == CellCode::conv_3x3) {
      before += edges_leaving(plan, node, CellCode::conv_1x1).count;
    }
    return before * partial_size(1);
  }

  T* gradient(int e, const CellEdge& edge) const {
    const int64_t taps = kernel_size(edge) * kernel_size(edge);
    return static_cast<T*>(shape_.p.grad_weights[e][edge.bank]) +
           edge.slot * shape_.p.channels * shape_.p.channels * taps;
  }

  void reduce_winograd(const CellPlan& plan, const NodeEdges& own, const T* partial,
                       int64_t workers, int64_t worker_stride) const {
    const WinogradWeightGradient<T> all = winograd(own.count);
    T* to[kCellNodes - 1];
    const int64_t jobs = all.finish_jobs() / own.count;
    for (int i = 0; i < own.count; ++i) to[i] = gradient(own.edges[i], plan.edges[own.edges[i]]);
    parallel_for(shape_.p.parallel, all.finish_jobs(), [&](int64_t job) {
      const bool again = plan.edges[own.edges[job / jobs]].again;
      all.finish(partial, worker_stride, workers, again, job, to);
    });
  }

  CellShape<T> shape_;
  BlockWeightGradient<T> one_, three_;
};

}  // namespace cwkernels::CWK_ISA
