#include "../parts/load.h"
#include "sgd.h"

namespace cwkernels::CWK_ISA {
namespace {

// A piece of a row: weight, momentum and gradient of 4096 floats are 48 KB. It bounds what one
// worker can get more than another.
constexpr int64_t kPiece = 4096;

// What is worth another worker: 16 pieces take some 20 µs out of the last cache.
constexpr int64_t kPiecesPerWorker = 16;

template <class T>
struct Rates {
  T lr, momentum, weight_decay;
};

// The gradient of elements [i, i + lanes) of a row: the sum of its entries, in order.
template <class T>
struct Gradient {
  const T* grad;
  const int64_t* entries;
  int64_t count, row_size;

  template <class Load>
  CWK_INLINE Vector<T> operator()(int64_t i, const Load& load_from) const {
    if (count == 0) return Vector<T>{};
    Vector<T> sum = load_from(grad + entries[0] * row_size + i);
    for (int64_t e = 1; e < count; ++e) sum += load_from(grad + entries[e] * row_size + i);
    return sum;
  }
};

template <class T>
CWK_INLINE void move_vector(const Rates<T>& rates, Vector<T> gradient, Vector<T>& weight,
                            Vector<T>& momentum) {
  // Without decay a weight that is not finite must not reach the momentum.
  if (rates.weight_decay != 0) gradient += weight * rates.weight_decay;
  momentum = momentum * rates.momentum + gradient;
  weight -= momentum * rates.lr;
}

template <class T>
CWK_FLATTEN void move_piece(const Rates<T>& rates, const Gradient<T>& gradient, T* weight,
                            T* momentum, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + kLanes<T> <= end; i += kLanes<T>) {
    Vector<T> w = load(weight + i), m = load(momentum + i);
    move_vector(rates, gradient(i, [](const T* p) { return load(p); }), w, m);
    store(momentum + i, m);
    store(weight + i, w);
  }
  if (i == end) return;
  const int64_t left = end - i;
  const auto part = [left](const T* p) { return load_part(p, left); };
  Vector<T> w = part(weight + i), m = part(momentum + i);
  move_vector(rates, gradient(i, part), w, m);
  store_part(momentum + i, m, left);
  store_part(weight + i, w, left);
}

// The same piece of all rows, in their order: they may share their momentum.
template <class T>
void move_rows(const SgdTarget& target, int64_t piece) {
  const SgdOptions& options = target.options;
  const Rates<T> rates{static_cast<T>(options.lr), static_cast<T>(options.momentum),
                       static_cast<T>(options.weight_decay)};
  const int64_t begin = piece * kPiece, end = min(begin + kPiece, target.row_size);
  for (int64_t u = 0; u < target.move_count; ++u) {
    const SgdRow& move = target.moves[u];
    const int64_t at = move.row * target.row_size;
    move_piece<T>(rates,
                  {static_cast<const T*>(target.grad), target.entries + move.first, move.count,
                   target.row_size},
                  static_cast<T*>(target.weight) + at,
                  static_cast<T*>(target.momentum) + (target.shared_buffer ? 0 : at), begin, end);
  }
}

int64_t pieces_of(const SgdTarget& target) { return ceil_div(target.row_size, kPiece); }

}  // namespace

void sgd(const SgdParams& p) {
  int64_t pieces = 0, work = 0;
  for (int64_t i = 0; i < p.target_count; ++i) {
    pieces += pieces_of(p.targets[i]);
    work += ceil_div(p.targets[i].row_size * p.targets[i].move_count, kPiece);
  }
  // Each worker takes a run of pieces. Every element is moved alone, so who takes it is of no
  // account.
  const int64_t workers = max(1, min(min(p.parallel.num_threads, pieces), work / kPiecesPerWorker));
  parallel_for(p.parallel, workers, [&](int64_t worker) {
    const int64_t begin = pieces * worker / workers, end = pieces * (worker + 1) / workers;
    int64_t first = 0;
    for (int64_t i = 0; i < p.target_count && first < end; ++i) {
      const SgdTarget& target = p.targets[i];
      const int64_t own = pieces_of(target);
      for (int64_t piece = max(begin - first, 0); piece < min(own, end - first); ++piece) {
        if (target.double_precision) {
          move_rows<double>(target, piece);
        } else {
          move_rows<float>(target, piece);
        }
      }
      first += own;
    }
  });
}

}  // namespace cwkernels::CWK_ISA
