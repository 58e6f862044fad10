#pragma once
#include "../ops/nb201_cell.h"
#include "normalize.cuh"
#include "reduce.cuh"

// What the kernels of a NAS-Bench-201 cell share: architectures as a launch carries them, and the
// cell that a block works on.
namespace cwkernels {

constexpr int kCellFan = kCellNodes - 1;  // edges that enter or leave a node, at most

// kCellSources and kCellTargets for device code, which has no constant arrays of the host.
__host__ __device__ constexpr int source_of(int e) { return 0x210100 >> 4 * e & 15; }
__host__ __device__ constexpr int target_of(int e) { return 0x333221 >> 4 * e & 15; }
constexpr bool same_edges() {
  for (int e = 0; e < kCellEdges; ++e) {
    if (source_of(e) != kCellSources[e] || target_of(e) != kCellTargets[e]) return false;
  }
  return true;
}
static_assert(same_edges());
constexpr int32_t kNowhere = -1;

// A CellEdge as kernels read it.
struct CellChoice {
  int8_t code;  // a CellCode
  int8_t bank;
  bool again;
  int32_t row;
  int32_t raw;  // a place, see CellLaunch::at
  int32_t slot;
};

// A CellPlan as kernels read it.
struct CellArchitecture {
  CellChoice edges[kCellEdges];
  int8_t origins[kCellNodes];
  int32_t nodes[kCellNodes];  // places of nodes that are stored
};
static_assert(sizeof(CellChoice) == 16 && sizeof(CellArchitecture) == 116);

// A launch carries as many architectures as its parameters, 4 KB, have room for.
constexpr int kCellMost = 16;

// A convolution whose weights get a gradient. All that read one row of a bank have the first of
// them for their leader.
struct CellJob {
  int8_t architecture, edge, leader;
  int8_t members;  // of its leader
};

// The edge between two nodes.
__host__ __device__ constexpr int edge_between(int source, int target) {
  return target * (target - 1) / 2 + source;
}
static_assert(edge_between(0, 1) == 0 && edge_between(1, 2) == 2 && edge_between(2, 3) == 5);

// The convolutions that leave a node lie side by side in its moments, those that enter it in its
// sums.
__host__ __device__ constexpr int leaving_place(int e) { return target_of(e) - source_of(e) - 1; }
__host__ __device__ constexpr int entering_place(int e) { return source_of(e); }
__host__ __device__ constexpr bool normalised(const CellChoice& edge) {
  return edge.code == static_cast<int8_t>(CellCode::conv_1x1) ||
         edge.code == static_cast<int8_t>(CellCode::conv_3x3);
}
__host__ __device__ constexpr bool convolves(const CellChoice& edge) { return edge.bank >= 0; }
__host__ __device__ constexpr bool is(const CellChoice& edge, CellCode code) {
  return edge.code == static_cast<int8_t>(code);
}
__host__ __device__ constexpr int kernel_size(const CellChoice& edge) {
  return is(edge, CellCode::conv_3x3) ? 3 : 1;
}

template <class T>
struct CellLaunch {
  NB201CellParams p;
  Partials<Moments<T>> moments[kCellNodes];  // of what leaves a node; of the output
  Partials<Sums<T>> sums[kCellNodes];        // backward, of what enters a node
  T* scratch;                                // images [N, H, W, C] that are not kept
  int64_t first;                             // of the call's architectures, that of slot 0
  int64_t blocks;                            // of an architecture, of those that share out pixels
  int node;
  int jobs_count;
  CellJob jobs[kCellMost * kCellEdges];  // backward
  CellArchitecture architectures[kCellMost];
  int count;

  __host__ __device__ int64_t pixels() const { return p.images * p.height * p.width; }
  __host__ __device__ int64_t size() const { return pixels() * p.channels; }
  // Places from 0 on are rows of `kept`, those below kNowhere are scratch.
  __host__ __device__ static constexpr int32_t scratch_place(int32_t i) { return kNowhere - 1 - i; }
  __device__ T* at(int32_t place) const {
    return place >= 0 ? static_cast<T*>(p.kept) + place * size()
                      : scratch + (kNowhere - 1 - place) * size();
  }
};
static_assert(sizeof(CellLaunch<double>) <= 4096);

// Where a pixel lies. Numbers of pixels have 31 bits, offsets of elements 64.
struct CellPixel {
  int image;  // the first pixel of its image
  int y, x;
};

// One architecture's cell in a launch. Everything that a block knows of its architecture comes from
// the constructor.
template <class T>
class CellOf {
 public:
  __device__ CellOf(const CellLaunch<T>& launch, int slot)
      : l(launch), own(launch.architectures[slot]), slot(slot), a(launch.first + slot) {}

  const CellLaunch<T>& l;
  const CellArchitecture& own;
  int slot;
  int64_t a;

  __device__ const CellChoice& edge(int e) const { return own.edges[e]; }
  __device__ const T* input() const {
    return static_cast<const T*>(l.p.input) + (l.p.shared ? 0 : a * l.size());
  }
  __device__ T* output() const { return static_cast<T*>(l.p.output) + a * l.size(); }
  __device__ T* raw(int e) const { return l.at(own.edges[e].raw); }
  // Where the value of a node can be read, once it is stored.
  __device__ const T* node(int n) const {
    const int origin = own.origins[n];
    return origin == 0 ? input() : l.at(own.nodes[origin]);
  }
  // Where a node's value goes.
  __device__ T* stored(int n) const { return n == 3 ? output() : l.at(own.nodes[n]); }
  __device__ const T* weight(int e) const {
    return static_cast<const T*>(l.p.weights[e][edge(e).bank]) + edge(e).row * weight_size(e);
  }
  __device__ int64_t weight_size(int e) const {
    return l.p.channels * l.p.channels * kernel_size(edge(e)) * kernel_size(edge(e));
  }
  __device__ T* statistics(int e) const {
    return static_cast<T*>(l.p.statistics) + (a * kCellEdges + e) * 2 * l.p.channels;
  }
  // What an edge is normalised by, where that is complete before the launch.
  __device__ Channels<T> channels(int e) const {
    const T eps = static_cast<T>(l.p.eps);
    if (l.p.training) return {statistics(e), statistics(e) + l.p.channels, nullptr, nullptr, eps};
    const int64_t from = edge(e).row * l.p.channels;
    return {static_cast<const T*>(l.p.running_mean[e][edge(e).bank]) + from,
            static_cast<const T*>(l.p.running_var[e][edge(e).bank]) + from, nullptr, nullptr, eps};
  }
  // The same from what the launch before has measured.
  __device__ Norm<T> norm(int e, int64_t c) const {
    if (!l.p.training) return channels(e).norm(c);
    return norm_of(measured(e, c), T(1), T(0), static_cast<T>(l.p.eps));
  }
  __device__ Moments<T> measured(int e, int64_t c) const {
    return l.moments[source_of(e)].sum(slot, leaving_place(e) * l.p.channels + c);
  }
  __device__ NormBackward<T> norm_backward(int e, int64_t c) const {
    Sums<T> sums = Sums<T>::nothing();
    if (l.p.training) {
      sums = l.sums[target_of(e)].sum(slot, entering_place(e) * l.p.channels + c);
    }
    return channels(e).backward(c, sums, static_cast<T>(l.pixels()), l.p.training);
  }
  // The gradient of a node.
  __device__ T* grad(int n) const {
    if (n == 3) {
      return const_cast<T*>(static_cast<const T*>(l.p.grad_output)) + a * l.size();
    }
    if (n == 0) return static_cast<T*>(l.p.grad_input) + (l.p.shared ? 0 : a * l.size());
    return l.at(CellLaunch<T>::scratch_place(slot * 2 + n - 1));
  }

  __device__ CellPixel pixel(int i) const {
    const int width = static_cast<int>(l.p.width), height = static_cast<int>(l.p.height);
    const int line = i / width, image = line / height;
    return {image * height * width, line - image * height, i - line * width};
  }
  __device__ bool inside(int y, int x) const {
    return y >= 0 && y < l.p.height && x >= 0 && x < l.p.width;
  }
  __device__ int64_t offset(const CellPixel& at, int y, int x) const {
    return (at.image + y * l.p.width + x) * l.p.channels;
  }
  // How many pixels the average pool's window at a pixel divides by.
  __device__ int window(int y, int x) const {
    if (l.p.count_include_pad) return 9;
    return (1 + (y > 0) + (y + 1 < l.p.height)) * (1 + (x > 0) + (x + 1 < l.p.width));
  }
  // f(y, x) for each pixel of the 3 x 3 around one that lies in the image.
  template <class F>
  __device__ void around(const CellPixel& at, const F& f) const {
    for (int y = at.y - 1; y <= at.y + 1; ++y) {
      for (int x = at.x - 1; x <= at.x + 1; ++x) {
        if (inside(y, x)) f(y, x);
      }
    }
  }
};

// What a launch for a node does in an architecture.
__host__ __device__ inline bool enters(const CellArchitecture& own, int e, int n) {
  return target_of(e) == n && !is(own.edges[e], CellCode::none);
}
__host__ __device__ inline bool leaves(const CellArchitecture& own, int e, int n) {
  return source_of(e) == n && !is(own.edges[e], CellCode::none);
}
__host__ __device__ inline bool fed(const CellArchitecture& own, int n) {
  bool any = n == 0;
  for (int e = 0; e < kCellEdges; ++e) any |= enters(own, e, n);
  return any;
}

// Whether a launch sums a node from what enters it; otherwise it reads it where it is stored.
__host__ __device__ inline bool is_summed(const CellArchitecture& own, int n) {
  return n == 3 || (n > 0 && own.origins[n] == n);
}

// Makes the coefficients [kCellFan, C] of the batch norms that enter a node, by all threads; one
// block leaves the statistics that they are made of.
template <class T>
__device__ void cell_make_norms(const CellOf<T>& cell, int n, Norm<T>* norms) {
  const int64_t channels = cell.l.p.channels;
  for (int source = 0; source < n && is_summed(cell.own, n); ++source) {
    const int e = edge_between(source, n);
    if (!normalised(cell.edge(e))) continue;
    T* statistics = cell.statistics(e);
    for (int64_t c = threadIdx.x; c < channels; c += blockDim.x) {
      norms[source * channels + c] = cell.norm(e, c);
      if (blockIdx.x != 0 || !cell.l.p.training) continue;
      const Moments<T> own = cell.measured(e, c);
      statistics[c] = own.mean;
      statistics[channels + c] = own.variance();
    }
  }
}

// Whether launch `node` of the forward pass has work in an architecture.
__host__ __device__ inline bool cell_forward_works(const CellArchitecture& own, int node) {
  bool any = node == 3 || own.nodes[node] != kNowhere;
  for (int e = 0; e < kCellEdges; ++e) any |= leaves(own, e, node) && convolves(own.edges[e]);
  return any;
}
// In evaluation, with nothing kept: what leaves a node is added to the nodes that it enters, where
// those are stored. A node that is only a skip is read where it comes from.
__host__ __device__ inline bool cell_adds(const CellArchitecture& own, int e) {
  return !is(own.edges[e], CellCode::none) &&
         (target_of(e) == 3 || own.nodes[target_of(e)] != kNowhere);
}
__host__ __device__ inline bool cell_begins(const CellArchitecture& own, int e) {
  bool begins = true;
  for (int before = 0; before < e; ++before) begins &= !enters(own, before, target_of(e));
  return begins;
}
__host__ __device__ inline bool cell_evaluation_works(const CellArchitecture& own, int node) {
  bool any = node == 0 && !fed(own, 3);
  for (int e = 0; e < kCellEdges; ++e) any |= source_of(e) == node && cell_adds(own, e);
  return any;
}

// --- Host ----------------------------------------------------------------------------------------

// Hands out a call's scratch piece after piece, or counts it where there is none yet.
class CellScratch {
 public:
  explicit CellScratch(const NB201CellParams& p) : p_(p) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(static_cast<unsigned char*>(p_.workspace) + used_.bytes);
    used_.bytes += (count * static_cast<int64_t>(sizeof(T)) + 127) / 128 * 128;
    return p_.workspace ? piece : nullptr;
  }
  template <class Value>
  Partials<Value> partials(int64_t slots, int64_t blocks, int64_t width) {
    Partials<Value> own{nullptr, nullptr, blocks, width};
    own.values = take<Value>(slots * own.values_per_slot());
    own.tickets = p_.tickets ? p_.tickets + used_.tickets : nullptr;
    used_.tickets += slots * own.tickets_per_slot();
    return own;
  }
  CudaScratch used() const { return used_; }

 private:
  const NB201CellParams& p_;
  CudaScratch used_;
};

// In evaluation, if nothing is kept, no raw output is stored: edges are normalised as they are
// convolved.
inline bool is_fused(const NB201CellParams& p) { return !p.training && !p.kept; }

// The launch's choices of a plan; what must be stored and is not kept gets scratch from `places`
// on.
template <class T>
CellArchitecture cell_architecture(const NB201CellParams& p, const CellPlan& plan,
                                   int32_t& places) {
  CellArchitecture own{};
  for (int n = 0; n < kCellNodes; ++n) own.origins[n] = static_cast<int8_t>(plan.origins[n]);
  for (int e = 0; e < kCellEdges; ++e) {
    const CellEdge& edge = plan.edges[e];
    own.edges[e] = {static_cast<int8_t>(edge.code),
                    static_cast<int8_t>(edge.bank),
                    edge.again,
                    static_cast<int32_t>(edge.row),
                    kNowhere,
                    static_cast<int32_t>(edge.slot)};
  }
  const auto place = [&](int64_t kept, bool needed) {
    if (p.kept && kept >= 0) return static_cast<int32_t>(kept);
    return needed ? CellLaunch<T>::scratch_place(places++) : kNowhere;
  };
  for (int e = 0; e < kCellEdges; ++e) {
    own.edges[e].raw = place(plan.edges[e].raw, convolves(own.edges[e]) && !is_fused(p));
  }
  bool read[kCellNodes] = {};  // by what does not compute it on its load
  for (int e = 0; e < kCellEdges; ++e) {
    const bool added = !is(own.edges[e], CellCode::none) && !convolves(own.edges[e]);
    read[own.origins[source_of(e)]] |= added || is_fused(p);
  }
  for (int n = 0; n < kCellNodes; ++n) {
    const bool inner = n == 1 || n == 2;
    const bool own_value = inner && own.origins[n] == n && fed(own, n);
    own.nodes[n] = place(inner ? plan.nodes[n] : -1, own_value && read[n]);
  }
  return own;
}

// The blocks that share out the pixels of an architecture: two a processor at most.
inline int64_t cell_blocks(const NB201CellParams& p, int64_t pixels_per_block) {
  const int64_t pixels = p.images * p.height * p.width;
  return sum_blocks(current_device().processors, 1,
                    (pixels + pixels_per_block - 1) / pixels_per_block);
}

// Architectures of the call from `first` on, their places still without scratch.
template <class T>
CellLaunch<T> cell_launch(const NB201CellParams& p, int64_t first, int32_t& places) {
  CellLaunch<T> l{};
  l.p = p;
  l.first = first;
  l.count =
      static_cast<int>(p.architectures - first < kCellMost ? p.architectures - first : kCellMost);
  for (int i = 0; i < l.count; ++i) {
    l.architectures[i] = cell_architecture<T>(p, p.plans[first + i], places);
  }
  return l;
}

}  // namespace cwkernels
