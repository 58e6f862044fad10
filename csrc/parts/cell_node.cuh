#pragma once
#include "cell_tile.cuh"

// The value of a cell's node as kernels load it, whether it is stored or not.
namespace cwkernels {

// What a node is summed from.
template <class Stored>
struct CellTerm {
  enum class Kind { nothing, plain, normalised, pooled };
  const Stored* from;
  Kind kind;
};

// Four channels of a node: read where it is stored, or summed on their load and stored where that
// is asked for, those of a tile's own pixels.
template <class Stored>
class CellNodeFours {
 public:
  using Term = CellTerm<Stored>;

  // `norms` from cell_make_norms; null: the node is stored. `terms` are kCellFan of shared memory,
  // written here: there after the next barrier.
  __device__ __forceinline__ CellNodeFours(const CellOf<Stored>& cell, int node,
                                           const Norm<float>* norms, Term* terms)
      : cell_(cell), norms_(norms), terms_(terms) {
    const int source = static_cast<int>(threadIdx.x);
    if (source >= kCellFan) return;
    const bool summed = norms && is_summed(cell.own, node);
    Term& term = terms[source];
    term = {nullptr, Term::Kind::nothing};
    if (!summed && source == 0) term = {cell.node(node), Term::Kind::plain};
    if (!summed || source >= node) return;
    const int e = edge_between(source, node);
    const CellChoice& edge = cell.edge(e);
    if (convolves(edge)) {
      term = {cell.raw(e), normalised(edge) ? Term::Kind::normalised : Term::Kind::plain};
    } else if (!is(edge, CellCode::none)) {
      term = {cell.node(source), is(edge, CellCode::skip) ? Term::Kind::plain : Term::Kind::pooled};
    }
  }

  // Those of a batch, term after term. `base` is where its offsets begin.
  __device__ __forceinline__ void operator()(int64_t base, const CellBatch& batch,
                                             Four (&sums)[CellBatch::kCount]) const {
    const int64_t channels = cell_.l.p.channels;
#pragma unroll 1
    for (int source = 0; source < kCellFan; ++source) {
      const Term term = terms_[source];
      if (term.kind == Term::Kind::nothing) continue;
      const Stored* from = term.from + base;
      Four values[CellBatch::kCount] = {};
      if (term.kind == Term::Kind::pooled) {
#pragma unroll
        for (int b = 0; b < CellBatch::kCount; ++b) {
          if (batch.live[b]) values[b] = pooled(from + batch.offsets[b], batch.y[b], batch.x[b]);
        }
      } else {
        batch.load(from, values);
      }
      if (term.kind == Term::Kind::normalised) {
        const Norm<float>* norms = norms_ + source * channels + batch.channel;
#pragma unroll
        for (int b = 0; b < CellBatch::kCount; ++b) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (batch.live[b]) values[b][i] = norms[i](values[b][i]);
          }
        }
      }
#pragma unroll
      for (int b = 0; b < CellBatch::kCount; ++b) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[b][i] += values[b][i];
      }
    }
  }

  // The average of the window around a pixel, whose own channels `from` points at.
  __device__ __forceinline__ Four pooled(const Stored* from, int y, int x) const {
    const NB201CellParams& p = cell_.l.p;
    Four sum{};
#pragma unroll 1
    for (int i = -1; i <= 1; ++i) {
      for (int j = -1; j <= 1; ++j) {
        if (!cell_.inside(y + i, x + j)) continue;
        const Four own = load_lanes<4>(from + (i * p.width + j) * p.channels);
#pragma unroll
        for (int k = 0; k < 4; ++k) sum[k] += own[k];
      }
    }
    const auto size = static_cast<float>(cell_.window(y, x));
#pragma unroll
    for (int k = 0; k < 4; ++k) sum[k] /= size;
    return sum;
  }

 private:
  const CellOf<Stored>& cell_;
  const Norm<float>* norms_;
  const Term* terms_;
};

}  // namespace cwkernels
