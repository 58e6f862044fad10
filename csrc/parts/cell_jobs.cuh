#pragma once
#include "cell.cuh"

// Which convolutions of a launch get gradients of their weights, and which of them share a row.
namespace cwkernels {

// The job of an edge's convolution; its count is 0 if the edge has none.
template <class Stored>
__host__ __device__ CellJob cell_job_of(const CellLaunch<Stored>& l, int slot, int e) {
  CellJob job{static_cast<int8_t>(slot), static_cast<int8_t>(e), 0, 0, 0};
  const CellChoice& own = l.architecture(slot).edges[e];
  if (!convolves(own)) return job;
  for (int other = l.count - 1; other >= 0; --other) {
    const CellChoice& choice = l.architecture(other).edges[e];
    if (choice.bank != own.bank || choice.slot != own.slot) continue;
    job.first = static_cast<int8_t>(other);
    ++job.count;
    job.readers = static_cast<uint16_t>(job.readers | 1u << other);
  }
  return job;
}

// Of blocks that serve job after job. With the choice on the device each edge has a job, and its
// blocks look up what it is: at most kCellMost choices of 16 bytes, once a block.
template <class Stored>
__device__ CellJob cell_job(const CellLaunch<Stored>& l, int number) {
  return l.chosen ? cell_job_of(l, number / kCellEdges, number % kCellEdges) : l.jobs[number];
}

// With the choice on the device: the row that each slot of a bank's gradient is for, by the threads
// of one block.
template <class Stored>
__device__ void cell_write_rows(const CellLaunch<Stored>& l) {
  const int banks = l.p.rows ? kCellEdges * static_cast<int>(l.p.banks_per_edge) : 0;
  for (int i = static_cast<int>(threadIdx.x); i < banks * l.count;
       i += static_cast<int>(blockDim.x)) {
    const int slot = i % l.count, bank = i / l.count;
    const CellChoice& own = l.architecture(slot).edges[bank / l.p.banks_per_edge];
    const bool is_its_own = own.bank == bank % l.p.banks_per_edge && !own.again;
    l.p.rows[bank * l.p.architectures + l.first + slot] = is_its_own ? own.row : -1;
  }
}

// --- Host ----------------------------------------------------------------------------------------

// The launch's jobs, architecture by architecture.
template <class Stored>
void find_jobs(CellLaunch<Stored>& l) {
  if (!l.p.need_weights) return;
  if (l.chosen) {
    l.jobs_count = l.count * kCellEdges;
    return;
  }
  for (int slot = 0; slot < l.count; ++slot) {
    for (int e = 0; e < kCellEdges; ++e) {
      const CellJob job = cell_job_of(l, slot, e);
      if (job.count == 0) continue;
      l.architectures[slot].edges[e].job = static_cast<int8_t>(l.jobs_count);
      l.jobs[l.jobs_count++] = job;
    }
  }
}

}  // namespace cwkernels
