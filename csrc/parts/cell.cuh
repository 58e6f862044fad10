#pragma once
#include "cell_choice.cuh"
#include "lanes.cuh"
#include "normalize.cuh"
#include "reduce.cuh"

// What the kernels of a NAS-Bench-201 cell share: architectures as a launch carries them, or as it
// finds them on the device, and the cell that a block works on.
namespace cwkernels {

constexpr int kCellFan = kCellNodes - 1;  // edges that enter or leave a node, at most

// A convolution whose weights get a gradient. Of all that read one row of a bank, the first sums
// for all.
struct CellJob {
  int8_t architecture, edge;
  int8_t first;      // architecture of the launch that reads the row
  int8_t count;      // of those that read it; 0: there is nothing to do
  uint16_t readers;  // bit a: architecture a reads it
};
static_assert(kCellMost <= 8 * sizeof(CellJob::readers));

// `Stored` is what images are in memory, raw outputs and gradients too; all else, what is computed
// and weights and statistics, is a T.
template <class Stored>
struct CellLaunch {
  using T = Computed<Stored>;

  NB201CellParams p;
  Partials<Moments<T>> moments[kCellNodes];  // of what leaves a node; of the output
  Partials<Sums<T>> sums[kCellNodes];        // backward, of what enters a node
  Stored* scratch;                           // images [N, H, W, C] that are not kept
  int64_t first;                             // of the call's architectures, that of slot 0
  int64_t blocks;                            // of an architecture, of those that share out pixels
  int node;
  int jobs_count;
  CellJob jobs[kCellMost * kCellEdges];  // backward, where the host knows them
  CellArchitecture architectures[kCellMost];
  const CellArchitecture* chosen;  // on the device, every kCellModes-th, in place of these; or null
  int count;

  __host__ __device__ const CellArchitecture& architecture(int slot) const {
    return chosen ? chosen[slot * kCellModes] : architectures[slot];
  }
  // The number of a convolution's job. With the choice on the device each edge has one.
  __host__ __device__ int job_of(int slot, int e) const {
    return chosen ? slot * kCellEdges + e : architectures[slot].edges[e].job;
  }
  __host__ __device__ int64_t pixels() const { return p.images * p.height * p.width; }
  __host__ __device__ int64_t size() const { return pixels() * p.channels; }
  __device__ Stored* at(int32_t place) const {
    return place >= 0 ? static_cast<Stored*>(p.kept) + place * size()
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
template <class Stored>
class CellOf {
 public:
  using T = Computed<Stored>;

  __device__ CellOf(const CellLaunch<Stored>& launch, int slot)
      : l(launch), own(launch.architecture(slot)), slot(slot), a(launch.first + slot) {}

  const CellLaunch<Stored>& l;
  const CellArchitecture& own;
  int slot;
  int64_t a;

  __device__ const CellChoice& edge(int e) const { return own.edges[e]; }
  __device__ const Stored* input() const {
    return static_cast<const Stored*>(l.p.input) + (l.p.shared ? 0 : a * l.size());
  }
  __device__ Stored* output() const { return static_cast<Stored*>(l.p.output) + a * l.size(); }
  __device__ Stored* raw(int e) const { return l.at(own.edges[e].raw); }
  // Where the value of a node can be read, once it is stored.
  __device__ const Stored* node(int n) const {
    const int origin = own.origins[n];
    return origin == 0 ? input() : l.at(own.nodes[origin]);
  }
  // Where a node's value goes.
  __device__ Stored* stored(int n) const { return n == 3 ? output() : l.at(own.nodes[n]); }
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
    return l.moments[source_of(e)].sum_at_once(slot, leaving_place(e) * l.p.channels + c);
  }
  __device__ NormBackward<T> norm_backward(int e, int64_t c) const {
    Sums<T> sums = Sums<T>::nothing();
    if (l.p.training) {
      sums = l.sums[target_of(e)].sum(slot, entering_place(e) * l.p.channels + c);
    }
    return channels(e).backward(c, sums, static_cast<T>(l.pixels()), l.p.training);
  }
  // The gradient of a node.
  __device__ Stored* grad(int n) const {
    if (n == 3) {
      return const_cast<Stored*>(static_cast<const Stored*>(l.p.grad_output)) + a * l.size();
    }
    if (n == 0) return static_cast<Stored*>(l.p.grad_input) + (l.p.shared ? 0 : a * l.size());
    return l.at(scratch_place(slot * 2 + n - 1));
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

// Makes the coefficients [kCellFan, C] of the batch norms that enter a node, by all threads; one
// block leaves the statistics that they are made of.
template <class Stored, class T = Computed<Stored>>
__device__ void cell_make_norms(const CellOf<Stored>& cell, int n, Norm<T>* norms) {
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

// f(an element) of the type of a call's images.
template <class F>
auto with_cell_images(const NB201CellParams& p, const F& f) {
  if (p.bf16_images) return f(bf16{});
  return p.double_precision ? f(double{}) : f(float{});
}

inline CellMode cell_mode(const NB201CellParams& p) {
  return p.kept ? CellMode::kept : p.training ? CellMode::measured : CellMode::fused;
}
inline bool is_fused(const NB201CellParams& p) { return cell_mode(p) == CellMode::fused; }

// The launch's choices of a plan; what must be stored and is not kept gets scratch from `places`
// on.
inline CellArchitecture cell_architecture(const NB201CellParams& p, const CellPlan& plan,
                                          int32_t& places) {
  CellArchitecture own = cell_architecture(plan, cell_mode(p));
  const auto place = [&](int32_t& at, int64_t kept) {
    if (at == kNowhere) return;
    at = p.kept && kept >= 0 ? static_cast<int32_t>(kept) : scratch_place(places++);
  };
  for (int e = 0; e < kCellEdges; ++e) place(own.edges[e].raw, plan.edges[e].raw);
  for (int n = 0; n < kCellNodes; ++n) place(own.nodes[n], plan.nodes[n]);
  return own;
}

// The blocks that share out the pixels of an architecture: two a processor at most.
inline int64_t cell_blocks(const NB201CellParams& p, int64_t pixels_per_block) {
  const int64_t pixels = p.images * p.height * p.width;
  return sum_blocks(current_device().processors, 1,
                    (pixels + pixels_per_block - 1) / pixels_per_block);
}

// Architectures of the call from `first` on, their places still without scratch.
template <class Stored>
CellLaunch<Stored> cell_launch(const NB201CellParams& p, int64_t first, int32_t& places) {
  CellLaunch<Stored> l{};
  l.p = p;
  l.first = first;
  l.count =
      static_cast<int>(p.architectures - first < kCellMost ? p.architectures - first : kCellMost);
  if (p.planned) {
    const CellMode mode = cell_mode(p);
    l.chosen = static_cast<const CellArchitecture*>(p.planned) + first * kCellModes +
               static_cast<int>(mode);
    places = mode == CellMode::kept ? 0 : l.count * cell_places(mode);
    return l;
  }
  for (int i = 0; i < l.count; ++i) {
    l.architectures[i] = cell_architecture(p, p.plans[first + i], places);
  }
  return l;
}

}  // namespace cwkernels
