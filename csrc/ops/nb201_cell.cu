#include "nb201_cell_backward.cuh"

namespace cwkernels {
namespace {

// f(first architecture) for each launch's worth of architectures of a call.
template <class F>
int for_each_part(const NB201CellParams& params, const F& f) {
  for (int64_t first = 0; first < params.architectures; first += kCellMost) {
    if (const int error = f(first)) return error;
  }
  return 0;
}

// Parts run one after the other in the same scratch.
void enlarge(CudaScratch& most, const CudaScratch& used) {
  most = {max(most.bytes, used.bytes), max(most.tickets, used.tickets)};
}

}  // namespace

CudaScratch nb201_cell_cuda_scratch(const NB201CellParams& params) {
  CudaScratch most, used;
  for_each_part(params, [&](int64_t first) {
    with_cell_forward(params, first, used, [](auto&, auto&) { return 0; });
    enlarge(most, used);
    return 0;
  });
  return most;
}

int nb201_cell_cuda(const NB201CellParams& params, void* stream) {
  CudaScratch used;
  return for_each_part(params, [&](int64_t first) {
    return with_cell_forward(params, first, used, [&](auto& launch, auto& part) {
      return launch_cell_forward(launch, part, stream);
    });
  });
}

CudaScratch nb201_cell_backward_cuda_scratch(const NB201CellParams& params) {
  CudaScratch most, used;
  for_each_backward(params, used, [&](auto&, auto&) {
    enlarge(most, used);
    return 0;
  });
  return most;
}

int nb201_cell_backward_cuda(const NB201CellParams& params, void* stream) {
  CudaScratch used;
  return for_each_backward(params, used, [&](auto& launch, auto& part) {
    return launch_cell_backward(launch, part, stream);
  });
}

}  // namespace cwkernels
