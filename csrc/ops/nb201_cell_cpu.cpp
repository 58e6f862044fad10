#include "../parts/cell.h"
#include "nb201_cell.h"

namespace cwkernels::CWK_ISA {
namespace {

// Forward, an architecture after the other. In training it runs in phases, one for each node: a
// node is summed from raw outputs that are normalised on load, and all convolutions that leave it
// read the block while it lies in cache. Batch statistics need the whole batch, so phases meet at
// barriers. In evaluation, if nothing is kept, a block runs through the whole cell in cache: of
// 32 x 32 x 16 floats 64 KB for each of up to two nodes and six raw outputs.
template <class T>
class CellForward {
 public:
  CellForward(const NB201CellParams& params, Arena& arena)
      : shape_(params),
        p_(shape_.p),
        convolutions_(shape_, ConvPass::forward, arena),
        workers_(workers_for(p_.parallel, shape_.blocks.count)),
        fused_(!p_.training && !p_.kept),
        patches_(arena.take<T>(workers_ * shape_.patch.size())),
        scratch_(arena.take<T>(workers_ * convolutions_.scratch_size())),
        measures_(arena.take<T>(kCellEdges * shape_.blocks.count * 2 * shape_.padded)),
        coefficients_(arena.take<T>(kCellEdges * 3 * shape_.padded)) {
    const int64_t scratch =
        fused_ ? workers_ * shape_.blocks.per_block * shape_.image_size : shape_.size();
    for (int e = 0; e < kCellEdges; ++e) raw_scratch_[e] = arena.take<T>(used_raw(e) * scratch);
    for (int n = 1; n < 3; ++n) node_scratch_[n] = arena.take<T>(used_node(n) * scratch);
  }

  void run() {
    parallel_for(p_.parallel, workers_, [&](int64_t w) { clear_patch(shape_.patch, patch(w)); });
    for (int64_t a = 0; a < p_.architectures; ++a) {
      a_ = a;
      place();
      convolutions_.prepare(plan());
      if (!p_.training) all_norms();
      if (fused_) {
        run_tasks(p_.parallel, workers_, shape_.blocks.count, [&](int64_t block, int64_t worker) {
          for (int node = 0; node < kCellNodes; ++node) node_of_block(node, worker, block);
        });
        continue;
      }
      for (int node = 0; node < kCellNodes; ++node) {
        run_tasks(p_.parallel, workers_, shape_.blocks.count,
                  [&](int64_t block, int64_t worker) { node_of_block(node, worker, block); });
        if (p_.training) merge(node);
      }
    }
  }

 private:
  const CellPlan& plan() const { return p_.plans[a_]; }
  T* patch(int64_t worker) const { return patches_ + worker * shape_.patch.size(); }
  T* measures(int e) const { return measures_ + e * shape_.blocks.count * 2 * shape_.padded; }

  // Whether any architecture has a raw output of this edge, or a node, that is not kept.
  bool used_raw(int e) const {
    for (int64_t a = 0; a < p_.architectures; ++a) {
      const CellEdge& edge = p_.plans[a].edges[e];
      if (convolves(edge) && (!p_.kept || edge.raw < 0)) return true;
    }
    return false;
  }
  bool used_node(int n) const {
    for (int64_t a = 0; a < p_.architectures; ++a) {
      if (p_.plans[a].origins[n] == n && (!p_.kept || p_.plans[a].nodes[n] < 0)) return true;
    }
    return false;
  }

  // Where the raw outputs and nodes of this architecture lie.
  void place() {
    const auto row = [&](int64_t kept, T* scratch) {
      return p_.kept && kept >= 0 ? static_cast<T*>(p_.kept) + kept * shape_.size() : scratch;
    };
    for (int e = 0; e < kCellEdges; ++e) raw_[e] = row(plan().edges[e].raw, raw_scratch_[e]);
    for (int n = 1; n < 3; ++n) nodes_[n] = row(plan().nodes[n], node_scratch_[n]);
    nodes_[3] = static_cast<T*>(p_.output) + a_ * shape_.size();
  }

  T* at(T* tensor, int64_t worker, int64_t block) const {
    return tensor + (fused_ ? worker * shape_.blocks.per_block * shape_.image_size
                            : shape_.block_offset(block));
  }
  T* raw(int e, int64_t worker, int64_t block) const { return at(raw_[e], worker, block); }
  T* own_node(int n, int64_t worker, int64_t block) const {
    return n == 3 ? nodes_[3] + shape_.block_offset(block) : at(nodes_[n], worker, block);
  }
  const T* node(int n, int64_t worker, int64_t block) const {
    const int origin = static_cast<int>(plan().origins[n]);
    if (origin == 0) return shape_.input(a_) + shape_.block_offset(block);
    return own_node(origin, worker, block);
  }

  void node_of_block(int n, int64_t worker, int64_t block) {
    if (n == 3 || (n > 0 && plan().origins[n] == n)) sum_node(n, worker, block);
    if (n == 3 && p_.training) {
      measure(own_node(3, worker, block), shape_.block_pixels(block), p_.channels, p_.channels,
              measures(0) + block * 2 * shape_.padded);
    }
    convolve(n, worker, block);
  }

  // Everything that convolves what a node holds.
  void convolve(int n, int64_t worker, int64_t block) const {
    const int64_t images = shape_.blocks.size(block);
    T* scratch = scratch_ + worker * convolutions_.scratch_size();
    T* targets[kCellEdges];
    bool plain = false, rectified = false;
    for (int e = 0; e < kCellEdges; ++e) {
      const CellEdge& edge = plan().edges[e];
      if (kCellSources[e] != n || !convolves(edge)) continue;
      (normalised(edge) ? rectified : plain) = true;
      targets[e] = raw(e, worker, block);
    }
    if (plain) {
      fill<false>(n, worker, block);
      convolutions_.run(plan(), n, CellCode::skip, patch(worker), images, targets, scratch);
    }
    if (!rectified) return;
    fill<true>(n, worker, block);
    convolutions_.run(plan(), n, CellCode::conv_3x3, patch(worker), images, targets, scratch);
    convolutions_.run(plan(), n, CellCode::conv_1x1, patch(worker), images, targets, scratch);
    for (int e = 0; p_.training && e < kCellEdges; ++e) {
      if (kCellSources[e] != n || !normalised(plan().edges[e])) continue;
      measure(targets[e], shape_.block_pixels(block), p_.channels, p_.channels,
              measures(e) + block * 2 * shape_.padded);
    }
  }

  template <bool kRectified>
  void fill(int n, int64_t worker, int64_t block) const {
    const LoadPlain<T> plain{node(n, worker, block)};
    const int64_t images = shape_.blocks.size(block);
    const SourceStrides strides = dense_strides(shape_.patch);
    if constexpr (kRectified) {
      fill_patch(shape_.patch, images, LoadRectified<T, LoadPlain<T>>{plain}, 0, strides,
                 patch(worker));
    } else {
      fill_patch(shape_.patch, images, plain, 0, strides, patch(worker));
    }
  }

  // A node of a block from the edges that enter it, row after row, so that the sum stays in L1.
  void sum_node(int n, int64_t worker, int64_t block) const {
    const int64_t row = p_.width * p_.channels;
    T* to = own_node(n, worker, block);
    for (int64_t i = 0; i < shape_.blocks.size(block) * p_.height; ++i) {
      bool overwrite = true;
      for (int e = 0; e < kCellEdges; ++e) {
        const CellEdge& edge = plan().edges[e];
        if (kCellTargets[e] != n || edge.code == CellCode::none) continue;
        add_edge(e, edge, worker, block, i, overwrite, to + i * row);
        overwrite = false;
      }
      if (overwrite) clear(to + i * row, row);
    }
  }

  // Row i of a block, counted over its images, of what an edge gives.
  void add_edge(int e, const CellEdge& edge, int64_t worker, int64_t block, int64_t i,
                bool overwrite, T* to) const {
    const int64_t row = p_.width * p_.channels;
    if (normalised(edge)) {
      return add_row(LoadNormalized<T>{raw(e, worker, block) + i * row, norms_[e]}, overwrite, to);
    }
    const T* from = convolves(edge) ? raw(e, worker, block) : node(kCellSources[e], worker, block);
    if (edge.code == CellCode::average_pool) {
      const T* image = from + i / p_.height * shape_.image_size;
      return pool_row(shape_.pool(), image, i % p_.height, overwrite, to);
    }
    add_row(LoadPlain<T>{from + i * row}, overwrite, to);
  }

  template <class Load>
  CWK_FLATTEN void add_row(const Load& load, bool overwrite, T* to) const {
    for (int64_t c = 0; c < p_.channels; c += kLanes<T>) {
      const int64_t left = p_.channels - c;
      const auto own = load.channel(c, left);
      for (int64_t at = 0; at < p_.width * p_.channels; at += p_.channels) {
        load.prefetch(at + c + kAhead<T>);
        Vector<T> value = own(at);
        if (!overwrite) value += load_channels(to + at + c, left);
        store_channels(to + at + c, value, left);
      }
    }
  }

  // The statistics of what a phase has written, and how it will be read.
  void merge(int n) {
    const auto pixels = [&](int64_t block) { return shape_.block_pixels(block); };
    if (n == 3) {
      T* own = static_cast<T*>(p_.output_statistics) + a_ * 2 * p_.channels;
      return merge_measures(measures(0), shape_.blocks.count, pixels, p_.channels, own);
    }
    for (int e = 0; e < kCellEdges; ++e) {
      if (kCellSources[e] != n || !normalised(plan().edges[e])) continue;
      merge_measures(measures(e), shape_.blocks.count, pixels, p_.channels,
                     shape_.statistics(a_, e));
      make_edge_norm(e);
    }
  }

  void all_norms() {
    for (int e = 0; e < kCellEdges; ++e) {
      if (normalised(plan().edges[e])) make_edge_norm(e);
    }
  }

  void make_edge_norm(int e) {
    const CellEdge& edge = plan().edges[e];
    norms_[e] = make_norm<T>(shape_.mean(a_, e, edge), shape_.variance(a_, e, edge), nullptr,
                             nullptr, p_.eps, p_.channels, coefficients_ + e * 3 * shape_.padded);
  }

  CellShape<T> shape_;
  const NB201CellParams& p_;
  CellConvolutions<T> convolutions_;
  int64_t workers_;
  bool fused_;
  T* patches_;
  T* scratch_;
  T* measures_;
  T* coefficients_;
  T* raw_scratch_[kCellEdges];
  T* node_scratch_[kCellNodes] = {};
  int64_t a_ = 0;
  T* raw_[kCellEdges];
  T* nodes_[kCellNodes] = {};
  Norm<T> norms_[kCellEdges] = {};
};

}  // namespace

int64_t nb201_cell_workspace(const NB201CellParams& params) {
  Arena arena(nullptr);
  params.double_precision ? void(CellForward<double>(params, arena))
                          : void(CellForward<float>(params, arena));
  return arena.used();
}

void nb201_cell(const NB201CellParams& params) {
  Arena arena(params.workspace);
  params.double_precision ? CellForward<double>(params, arena).run()
                          : CellForward<float>(params, arena).run();
}

}  // namespace cwkernels::CWK_ISA
