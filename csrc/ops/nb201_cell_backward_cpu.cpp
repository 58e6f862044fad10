#include "../parts/cell.h"
#include "nb201_cell.h"

namespace cwkernels::CWK_ISA {
namespace {

// Backward, an architecture after the other, nodes in reverse. A phase takes a block of one node
// through the edges that leave it: the gradient of each raw output is computed on load, read by the
// data gradient and, while it lies in cache, by the weights'. The sums that batch norms before the
// node want are taken from its gradient in the same phase; only they need a barrier.
template <class T>
class CellBackward {
 public:
  CellBackward(const NB201CellParams& params, Arena& arena)
      : shape_(params),
        p_(shape_.p),
        convolutions_(shape_, ConvPass::backward_input, arena),
        weights_(shape_, arena),
        partial_size_(weights_.partial_size(most_of_a_node())) {
    const int64_t fitting = kPartialBytes / max(partial_size_ * int64_t{sizeof(T)}, 1);
    workers_ = min(workers_for(p_.parallel, shape_.blocks.count), max(fitting, 1));
    sources_ = arena.take<T>(workers_ * shape_.patch.size());
    targets_ = arena.take<T>(workers_ * kMostTargets * shape_.patch.size());
    scratch_ = arena.take<T>(workers_ * scratch_size());
    partials_ = arena.take<T>(workers_ * partial_size_);
    sums_ = arena.take<T>(kCellEdges * shape_.blocks.count * 2 * shape_.padded);
    coefficients_ = arena.take<T>(kCellEdges * 4 * shape_.padded);
    merged_ = arena.take<double>(2 * p_.channels);
    for (int n = 0; n < 3; ++n) grad_scratch_[n] = arena.take<T>(uses_scratch(n) * shape_.size());
  }

  void run() {
    weights_.prepare();
    parallel_for(p_.parallel, workers_, [&](int64_t w) {
      clear_patch(shape_.patch, source(w));
      for (int i = 0; i < kMostTargets; ++i) clear_patch(shape_.patch, target(w, i));
    });
    for (int64_t a = 0; a < p_.architectures; ++a) {
      a_ = a;
      convolutions_.prepare(plan());
      place_means(3);
      run_tasks(p_.parallel, workers_, shape_.blocks.count,
                [&](int64_t block, int64_t) { sum_gradients_into(3, block); });
      make_backwards(3);
      for (int n = 2; n >= 0; --n) {
        if (fed(n)) phase(n);
      }
      if (p_.shared && p_.architectures > 1) add_to_shared();
    }
  }

 private:
  static constexpr int kMostTargets = kCellNodes - 1;  // edges that leave a node

  const CellPlan& plan() const { return p_.plans[a_]; }
  T* source(int64_t worker) const { return sources_ + worker * shape_.patch.size(); }
  T* target(int64_t worker, int i) const {
    return targets_ + (worker * kMostTargets + i) * shape_.patch.size();
  }
  T* scratch(int64_t worker) const { return scratch_ + worker * scratch_size(); }
  int64_t scratch_size() const {
    return max(convolutions_.scratch_size(), weights_.scratch_size());
  }
  T* sums(int e, int64_t block) const {
    return sums_ + (e * shape_.blocks.count + block) * 2 * shape_.padded;
  }

  // Convolutions that leave a node of an architecture, at most: their partial results lie side by
  // side.
  int64_t most_of_a_node() const {
    int64_t most = 0;
    for (int64_t a = 0; a < p_.architectures; ++a) {
      int64_t count[kCellNodes] = {};
      for (int e = 0; e < kCellEdges; ++e) {
        const CellEdge& edge = p_.plans[a].edges[e];
        count[kCellSources[e]] += p_.need_weights && convolves(edge);
      }
      for (const int64_t own : count) most = max(most, own);
    }
    return most;
  }

  bool uses_scratch(int n) const { return n > 0 || (p_.shared && p_.architectures > 1); }
  bool fed(int n) const {
    for (int e = 0; e < kCellEdges; ++e) {
      if (kCellTargets[e] == n && plan().edges[e].code != CellCode::none) return true;
    }
    return n == 0;
  }

  // The gradient of a node.
  T* grad(int n) const {
    if (n == 3) {
      return const_cast<T*>(static_cast<const T*>(p_.grad_output)) + a_ * shape_.size();
    }
    if (uses_scratch(n)) return grad_scratch_[n];
    return static_cast<T*>(p_.grad_input) + a_ * shape_.size();
  }
  const T* node(int n) const {
    const int64_t origin = plan().origins[n];
    if (origin == 0) return shape_.input(a_);
    return static_cast<const T*>(p_.kept) + plan().nodes[origin] * shape_.size();
  }
  const T* raw(const CellEdge& edge) const {
    return static_cast<const T*>(p_.kept) + edge.raw * shape_.size();
  }

  // The two sums of the batch norms that enter a node, of a block.
  void sum_gradients_into(int n, int64_t block) const {
    if (!p_.training) return;
    for (int e = 0; e < kCellEdges; ++e) {
      const CellEdge& edge = plan().edges[e];
      if (kCellTargets[e] != n || !normalised(edge)) continue;
      const LoadPlain<T> own{grad(n) + shape_.block_offset(block)};
      const LoadPlain<T> values{raw(edge) + shape_.block_offset(block)};
      const int64_t step = p_.channels;
      // Read by whole vectors: the mean is copied to where zeros follow it.
      T* mean = coefficients_ + e * 4 * shape_.padded;
      const auto ahead = [&](const LoadPlain<T>& load, int64_t p, int64_t c, int64_t left) {
        load.prefetch(p * step + c + kAhead<T>);
        return load(p * step, c, left);
      };
      sum_gradients<T>([&](int64_t p, int64_t c, int64_t l) { return ahead(own, p, c, l); },
                       [&](int64_t p, int64_t c, int64_t l) { return ahead(values, p, c, l); },
                       mean, shape_.block_pixels(block), p_.channels, sums(e, block));
    }
  }

  void place_means(int n) const {
    for (int e = 0; e < kCellEdges; ++e) {
      const CellEdge& edge = plan().edges[e];
      if (kCellTargets[e] != n || !normalised(edge)) continue;
      const T* mean = shape_.mean(a_, e, edge);
      T* own = coefficients_ + e * 4 * shape_.padded;
      for (int64_t c = 0; c < shape_.padded; ++c) own[c] = c < p_.channels ? mean[c] : T(0);
    }
  }

  void make_backwards(int n) {
    for (int e = 0; e < kCellEdges; ++e) {
      const CellEdge& edge = plan().edges[e];
      if (kCellTargets[e] != n || !normalised(edge)) continue;
      if (p_.training) merge_gradients(sums(e, 0), shape_.blocks.count, p_.channels, merged_);
      backwards_[e] = make_norm_backward<T>(shape_.mean(a_, e, edge), shape_.variance(a_, e, edge),
                                            nullptr, p_.eps, p_.training, merged_,
                                            static_cast<double>(p_.images * p_.height * p_.width),
                                            p_.channels, coefficients_ + e * 4 * shape_.padded);
    }
  }

  void phase(int n) {
    place_means(n);
    run_tasks(p_.parallel, workers_, shape_.blocks.count, [&](int64_t block, int64_t worker) {
      block_of_node(n, worker, block);
      if (n > 0) sum_gradients_into(n, block);
    });
    if (n > 0) make_backwards(n);
    if (p_.need_weights) weights_.reduce(plan(), n, partials_, workers_, partial_size_);
  }

  // The gradient of a node, of a block: through its convolutions and their ReLU, then what skips,
  // projections and pools add.
  void block_of_node(int n, int64_t worker, int64_t block) const {
    const int64_t offset = shape_.block_offset(block);
    const LoadPlain<T> values{node(n) + offset};
    T* to = grad(n) + offset;
    T* patches[kCellEdges];
    int normed = 0, plain = 0;
    for (int e = 0; e < kCellEdges; ++e) {
      const CellEdge& edge = plan().edges[e];
      if (kCellSources[e] != n || !normalised(edge)) continue;
      patches[e] = target(worker, normed++);
      const T* from = grad(kCellTargets[e]) + offset;
      fill(LoadNormGradient<T>{from, raw(edge) + offset, backwards_[e]}, block, patches[e]);
    }
    if (normed > 0) {
      fill(LoadRectified<T, LoadPlain<T>>{values}, block, source(worker));
      convolve(n, CellCode::conv_3x3, patches, worker, block, to, false);
      const bool some = edges_leaving(plan(), n, CellCode::conv_3x3).count > 0;
      convolve(n, CellCode::conv_1x1, patches, worker, block, to, some);
      mask(values.data, block, to);
    }
    for (int e = 0; e < kCellEdges; ++e) {
      const CellEdge& edge = plan().edges[e];
      if (kCellSources[e] != n || normalised(edge) || !convolves(edge)) continue;
      patches[e] = target(worker, plain++);
      fill(LoadPlain<T>{grad(kCellTargets[e]) + offset}, block, patches[e]);
    }
    if (plain > 0) {
      fill(values, block, source(worker));
      convolve(n, CellCode::skip, patches, worker, block, to, normed > 0);
    }
    add_others(n, block, normed + plain == 0, to);
  }

  // What edges without weights add to the gradient of a node, or give it alone.
  void add_others(int n, int64_t block, bool overwrite, T* to) const {
    for (int e = 0; e < kCellEdges; ++e) {
      const CellEdge& edge = plan().edges[e];
      if (kCellSources[e] != n || edge.code == CellCode::none || convolves(edge)) continue;
      const T* from = grad(kCellTargets[e]) + shape_.block_offset(block);
      if (edge.code == CellCode::average_pool) {
        add_pool(from, block, overwrite, to);
      } else {
        add(from, block, overwrite, to);
      }
      overwrite = false;
    }
    if (overwrite) clear(to, shape_.blocks.size(block) * shape_.image_size);
  }

  template <class Load>
  void fill(const Load& load, int64_t block, T* patch) const {
    fill_patch(shape_.patch, shape_.blocks.size(block), load, 0, dense_strides(shape_.patch),
               patch);
  }

  // Both gradients of the convolutions of one code that leave a node.
  void convolve(int n, CellCode code, T* const (&patches)[kCellEdges], int64_t worker,
                int64_t block, T* to, bool accumulate) const {
    const int64_t images = shape_.blocks.size(block);
    convolutions_.run_back(plan(), n, code, patches, images, to, accumulate, scratch(worker));
    if (!p_.need_weights) return;
    const bool begin = block == first_task(worker, workers_, shape_.blocks.count);
    weights_.accumulate(plan(), n, code, source(worker), patches, images, begin,
                        partials_ + worker * partial_size_, scratch(worker));
  }

  CWK_FLATTEN void mask(const T* values, int64_t block, T* to) const {
    const int64_t size = shape_.blocks.size(block) * shape_.image_size;
    int64_t i = 0;
    for (; i + kLanes<T> <= size; i += kLanes<T>) {
      store(to + i, load(values + i) <= Vector<T>{} ? Vector<T>{} : load(to + i));
    }
    for (; i < size; ++i) to[i] = values[i] <= T(0) ? T(0) : to[i];
  }

  void add(const T* from, int64_t block, bool overwrite, T* to) const {
    const int64_t size = shape_.blocks.size(block) * shape_.image_size;
    for (int64_t i = 0; i < size; ++i) to[i] = overwrite ? from[i] : to[i] + from[i];
  }

  void add_pool(const T* from, int64_t block, bool overwrite, T* to) const {
    const int64_t row = p_.width * p_.channels;
    for (int64_t i = 0; i < shape_.blocks.size(block) * p_.height; ++i) {
      pool_row_backward(shape_.pool(), from + i / p_.height * shape_.image_size, i % p_.height,
                        overwrite, to + i * row);
    }
  }

  // The gradient of images that all architectures share, summed in their order.
  void add_to_shared() const {
    run_tasks(p_.parallel, workers_, shape_.blocks.count, [&](int64_t block, int64_t) {
      const int64_t offset = shape_.block_offset(block);
      add(grad(0) + offset, block, a_ == 0, static_cast<T*>(p_.grad_input) + offset);
    });
  }

  CellShape<T> shape_;
  const NB201CellParams& p_;
  CellConvolutions<T> convolutions_;
  CellWeightGradients<T> weights_;
  int64_t partial_size_, workers_;
  T* sources_;
  T* targets_;
  T* scratch_;
  T* partials_;
  T* sums_;
  T* coefficients_;
  double* merged_;
  T* grad_scratch_[kCellNodes] = {};
  int64_t a_ = 0;
  NormBackward<T> backwards_[kCellEdges] = {};
};

}  // namespace

int64_t nb201_cell_backward_workspace(const NB201CellParams& params) {
  Arena arena(nullptr);
  params.double_precision ? void(CellBackward<double>(params, arena))
                          : void(CellBackward<float>(params, arena));
  return arena.used();
}

void nb201_cell_backward(const NB201CellParams& params) {
  Arena arena(params.workspace);
  params.double_precision ? CellBackward<double>(params, arena).run()
                          : CellBackward<float>(params, arena).run();
}

}  // namespace cwkernels::CWK_ISA
