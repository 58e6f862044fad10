#include "batch.h"

#include <optional>
#include <vector>

#include "../binding/checks.h"
#include "../binding/cpu.h"
#include "../binding/images.h"
#include "../binding/registration.h"
#include "../binding/stream.h"

namespace cwkernels {
namespace {

using torch::headeronly::ScalarType;
using MaybeTensor = std::optional<Tensor>;

constexpr const char* kName = "batch";

void check_operand(const char* argument, const Tensor& tensor, ScalarType dtype,
                   const std::vector<int64_t>& shape, const Tensor& images) {
  bool fits = tensor.scalar_type() == dtype && tensor.dim() == static_cast<int64_t>(shape.size());
  std::string wanted = "[";
  for (size_t d = 0; d < shape.size(); ++d) {
    fits = fits && tensor.size(static_cast<int64_t>(d)) == shape[d];
    wanted.append(d ? ", " : "").append(std::to_string(shape[d]));
  }
  const char* name = dtype == ScalarType::Long   ? "int64 "
                     : dtype == ScalarType::Bool ? "bool "
                                                 : "float32 ";
  CWK_CHECK(fits, kName, argument, name + wanted + "]",
            dtype_name(tensor) + (" " + describe(tensor)));
  check_same_device(kName, argument, tensor, images);
}

void check(const Tensor& images, const Tensor& indices, const MaybeTensor& shifts,
           const MaybeTensor& flips, const Tensor& mean, const Tensor& deviation) {
  CWK_CHECK(images.scalar_type() == ScalarType::Byte && images.dim() == 4, kName, "images",
            "uint8 [M, C, H, W]", dtype_name(images) + (" " + describe(images)));
  CWK_CHECK(indices.scalar_type() == ScalarType::Long && indices.dim() == 1, kName, "indices",
            "int64 [N]", dtype_name(indices) + (" " + describe(indices)));
  check_same_device(kName, "indices", indices, images);
  const int64_t count = indices.size(0), channels = images.size(1);
  if (shifts) check_operand("shifts", *shifts, ScalarType::Long, {count, 2}, images);
  if (flips) check_operand("flips", *flips, ScalarType::Bool, {count}, images);
  check_operand("mean", mean, ScalarType::Float, {channels}, images);
  check_operand("deviation", deviation, ScalarType::Float, {channels}, images);
}

void check_range(const Tensor& indices, int64_t stored) {
  if (!indices.is_cpu()) return;
  const auto* values = static_cast<const int64_t*>(indices.const_data_ptr());
  for (int64_t n = 0; n < indices.numel(); ++n) {
    CWK_CHECK(values[n] >= 0 && values[n] < stored, kName, "indices[" + std::to_string(n) + "]",
              "an image in [0, " + std::to_string(stored) + ")", values[n]);
  }
}

// The tensors as the kernel reads them; they live as long as this does.
struct Operands {
  Tensor images, indices, shifts, flips, mean, deviation;

  Operands(const Tensor& images_in, const Tensor& indices_in, const MaybeTensor& shifts_in,
           const MaybeTensor& flips_in, const Tensor& mean_in, const Tensor& deviation_in)
      : images(torch::stable::contiguous(images_in)),
        indices(torch::stable::contiguous(indices_in)),
        mean(torch::stable::contiguous(mean_in)),
        deviation(torch::stable::contiguous(deviation_in)) {
    if (shifts_in) shifts = torch::stable::contiguous(*shifts_in);
    if (flips_in) flips = torch::stable::contiguous(*flips_in);
  }
};

// On either device: run(params) calls the kernel.
template <class Run>
Tensor make_batch(const Run& run, const Tensor& images, const Tensor& indices,
                  const MaybeTensor& shifts, const MaybeTensor& flips, const Tensor& mean,
                  const Tensor& deviation) {
  check(images, indices, shifts, flips, mean, deviation);
  const Operands operands(images, indices, shifts, flips, mean, deviation);
  check_range(operands.indices, images.size(0));
  BatchParams params{};
  params.stored = images.size(0);
  params.count = indices.size(0);
  params.channels = images.size(1);
  params.height = images.size(2);
  params.width = images.size(3);
  const Tensor output =
      new_images(mean, {params.count, params.height, params.width, params.channels});
  if (output.numel() == 0) return output;
  params.images = static_cast<const uint8_t*>(operands.images.const_data_ptr());
  params.indices = static_cast<const int64_t*>(operands.indices.const_data_ptr());
  if (shifts) params.shifts = static_cast<const int64_t*>(operands.shifts.const_data_ptr());
  if (flips) params.flips = static_cast<const bool*>(operands.flips.const_data_ptr());
  params.mean = static_cast<const float*>(operands.mean.const_data_ptr());
  params.deviation = static_cast<const float*>(operands.deviation.const_data_ptr());
  params.output = static_cast<float*>(output.mutable_data_ptr());
  run(params);
  return output;
}

Tensor batch_cpu(const Tensor& images, const Tensor& indices, const MaybeTensor& shifts,
                 const MaybeTensor& flips, const Tensor& mean, const Tensor& deviation) {
  const auto run = [](BatchParams& params) {
    params.parallel = cpu_parallel();
    CWK_RUN_CPU(batch, params);
  };
  return make_batch(run, images, indices, shifts, flips, mean, deviation);
}

#if CWK_WITH_CUDA
Tensor batch_gpu(const Tensor& images, const Tensor& indices, const MaybeTensor& shifts,
                 const MaybeTensor& flips, const Tensor& mean, const Tensor& deviation) {
  const GpuCall call(kName, images);
  const auto run = [&](const BatchParams& params) {
    call.check(batch_cuda(params, call.stream()));
  };
  return make_batch(run, images, indices, shifts, flips, mean, deviation);
}
#endif

}  // namespace
}  // namespace cwkernels

CWK_SCHEMAS(m) {
  m.def(
      "batch(Tensor images, Tensor indices, Tensor? shifts, Tensor? flips, Tensor mean, "
      "Tensor deviation) -> Tensor");
}

CWK_CPU_FUNCTIONS(m) { m.impl("batch", TORCH_BOX(&cwkernels::batch_cpu)); }

#if CWK_WITH_CUDA
CWK_GPU_FUNCTIONS(m) { m.impl("batch", TORCH_BOX(&cwkernels::batch_gpu)); }
#endif
