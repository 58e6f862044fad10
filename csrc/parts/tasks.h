#pragma once
#include "parallel.h"
#include "simd.h"

// How the tasks of a kernel are shared out among workers that each have scratch of their own.
namespace cwkernels::CWK_ISA {

CWK_INLINE int64_t workers_for(const Parallel& parallel, int64_t tasks) {
  return max(min(parallel.num_threads, tasks), 1);
}

// The first task of a worker's run; the next worker's first is its end.
CWK_INLINE int64_t first_task(int64_t worker, int64_t workers, int64_t count) {
  return worker * count / workers;
}

// f(task, worker) for the tasks [0, count), in one run for each worker.
template <class F>
CWK_INLINE void run_tasks(const Parallel& parallel, int64_t workers, int64_t count, const F& f) {
  parallel_for(parallel, workers, [&](int64_t w) {
    const int64_t end = first_task(w + 1, workers, count);
    for (int64_t t = first_task(w, workers, count); t < end; ++t) f(t, w);
  });
}

}  // namespace cwkernels::CWK_ISA
