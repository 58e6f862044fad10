#include "nb201_cell_backward.cuh"

namespace cwkernels {
namespace {

CudaScratch larger(const CudaScratch& a, const CudaScratch& b) {
  return {a.bytes > b.bytes ? a.bytes : b.bytes, a.tickets > b.tickets ? a.tickets : b.tickets};
}

// f(element, first architecture) for each launch's worth of architectures of a call.
template <class F>
int for_each_launch(const NB201CellParams& params, const F& f) {
  for (int64_t first = 0; first < params.architectures; first += kCellMost) {
    const int error = params.double_precision ? f(double(), first) : f(float(), first);
    if (error != 0) return error;
  }
  return 0;
}

}  // namespace

CudaScratch nb201_cell_cuda_scratch(const NB201CellParams& params) {
  CudaScratch most;
  for_each_launch(params, [&](auto type, int64_t first) {
    CudaScratch used;
    cell_forward_plan<decltype(type)>(params, first, used);
    most = larger(most, used);
    return 0;
  });
  return most;
}

int nb201_cell_cuda(const NB201CellParams& params, void* stream) {
  return for_each_launch(params, [&](auto type, int64_t first) {
    CudaScratch used;
    const auto plan = cell_forward_plan<decltype(type)>(params, first, used);
    return launch_cell_forward(params, plan, stream);
  });
}

CudaScratch nb201_cell_backward_cuda_scratch(const NB201CellParams& params) {
  CudaScratch most;
  for_each_launch(params, [&](auto type, int64_t first) {
    CudaScratch used;
    cell_backward_plan<decltype(type)>(params, first, used);
    most = larger(most, used);
    return 0;
  });
  return most;
}

int nb201_cell_backward_cuda(const NB201CellParams& params, void* stream) {
  return for_each_launch(params, [&](auto type, int64_t first) {
    CudaScratch used;
    const auto plan = cell_backward_plan<decltype(type)>(params, first, used);
    return launch_cell_backward(params, plan, stream);
  });
}

}  // namespace cwkernels
