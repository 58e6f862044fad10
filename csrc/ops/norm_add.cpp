#include "norm_add.h"

#include <optional>
#include <tuple>
#include <vector>

#include "../binding/checks.h"
#include "../binding/cpu.h"
#include "../binding/gpu_scratch.h"
#include "../binding/registration.h"
#include "../binding/stream.h"

// Tensors are [N, C, H, W] or [A, N, C, H, W] in shape and channels-last in memory.
namespace cwkernels {
namespace {

using torch::headeronly::ScalarType;
using MaybeTensor = std::optional<Tensor>;

// Views of the same memory: channels behind the pixels, and before them again.
Tensor channels_behind(const Tensor& tensor) {
  const int64_t d = tensor.dim() - 3;
  return torch::stable::transpose(torch::stable::transpose(tensor, d, d + 1), d + 1, d + 2);
}
Tensor channels_before(const Tensor& tensor) {
  const int64_t d = tensor.dim() - 3;
  return torch::stable::transpose(torch::stable::transpose(tensor, d + 1, d + 2), d, d + 1);
}

Tensor channels_last(const Tensor& tensor) {
  const Tensor behind = channels_behind(tensor);
  return behind.is_contiguous() ? tensor : channels_before(torch::stable::contiguous(behind));
}

Tensor new_like(const Tensor& images) {
  const Tensor behind = channels_behind(images);
  const std::vector<int64_t> shape(behind.sizes().begin(), behind.sizes().end());
  return channels_before(new_tensor(images, shape));
}

// Gradients of parameters.
Tensor new_vector(const Tensor& images, int64_t size) {
  return torch::stable::new_empty(images, std::vector<int64_t>{size}, parameter_type(images));
}

bool same_shape(const Tensor& one, const Tensor& other) {
  if (one.dim() != other.dim()) return false;
  for (int64_t d = 0; d < one.dim(); ++d) {
    if (one.size(d) != other.size(d)) return false;
  }
  return true;
}

void check_like(const char* operation, const char* argument, const Tensor& tensor,
                const Tensor& like) {
  CWK_CHECK(same_shape(tensor, like), operation, argument, describe(like), describe(tensor));
  CWK_CHECK(tensor.scalar_type() == like.scalar_type(), operation, argument, dtype_name(like),
            dtype_name(tensor));
  check_same_device(operation, argument, tensor, like);
}

void check_vector(const char* operation, const char* argument, const MaybeTensor& tensor,
                  const Tensor& input) {
  if (!tensor) return;
  const int64_t channels = input.size(input.dim() - 3);
  CWK_CHECK(tensor->dim() == 1 && tensor->size(0) == channels, operation, argument,
            "one value for each channel", describe(*tensor));
  CWK_CHECK(tensor->scalar_type() == parameter_type(input), operation, argument,
            is_bf16(input) ? "float32" : dtype_name(input), dtype_name(*tensor));
  check_same_device(operation, argument, *tensor, input);
}

void check(const char* operation, const Tensor& input, const Tensor& statistics,
           const MaybeTensor& scale, const MaybeTensor& shift) {
  const int64_t dim = input.dim();
  CWK_CHECK(dim == 4 || dim == 5, operation, "input", "[N, C, H, W] or [A, N, C, H, W]",
            describe(input));
  check_activations(operation, "input", input);
  const int64_t architectures = dim == 5 ? input.size(0) : 1, channels = input.size(dim - 3);
  CWK_CHECK(channels > 0, operation, "input", "at least one channel", describe(input));
  CWK_CHECK(statistics.dim() == dim - 2 && statistics.size(dim - 4) == 2 &&
                statistics.numel() == architectures * 2 * channels &&
                statistics.scalar_type() == parameter_type(input),
            operation, "statistics", "mean and variance of each channel, in the parameters' dtype",
            describe(statistics));
  check_same_device(operation, "statistics", statistics, input);
  check_vector(operation, "scale", scale, input);
  check_vector(operation, "shift", shift, input);
  CWK_CHECK(scale.has_value() == shift.has_value(), operation, "shift",
            "scale and shift both or neither", "one");
}

// Small tensors as the kernel reads them; they live as long as this does.
struct Operands {
  Tensor statistics;
  MaybeTensor scale, shift;

  Operands(const Tensor& statistics_in, const MaybeTensor& scale_in, const MaybeTensor& shift_in)
      : statistics(torch::stable::contiguous(statistics_in)) {
    if (scale_in) scale = torch::stable::contiguous(*scale_in);
    if (shift_in) shift = torch::stable::contiguous(*shift_in);
  }
};

NormAddParams prepare(NormAddPass pass, const Tensor& input, const Operands& operands, bool relu,
                      bool training, double eps) {
  const int64_t d = input.dim() - 4;
  NormAddParams params{};
  params.pass = pass;
  params.double_precision = input.scalar_type() == ScalarType::Double;
  params.bf16_images = is_bf16(input);
  params.input = input.const_data_ptr();
  params.statistics = operands.statistics.const_data_ptr();
  params.scale = operands.scale ? operands.scale->const_data_ptr() : nullptr;
  params.shift = operands.shift ? operands.shift->const_data_ptr() : nullptr;
  params.architectures = d == 1 ? input.size(0) : 1;
  params.images = input.size(d);
  params.channels = input.size(d + 1);
  params.height = input.size(d + 2);
  params.width = input.size(d + 3);
  params.eps = eps;
  params.relu = relu;
  params.training = training;
  return params;
}

// A pass on either device: run(params, input) calls the kernel.
template <class Run>
Tensor forward(const Run& run, const Tensor& input_any, const Tensor& statistics,
               const MaybeTensor& scale, const MaybeTensor& shift, const MaybeTensor& shortcut,
               bool relu, bool training, double eps) {
  const char* name = "norm_add";
  check(name, input_any, statistics, scale, shift);
  if (shortcut) check_like(name, "shortcut", *shortcut, input_any);
  const Tensor input = channels_last(input_any);
  const Tensor added = shortcut ? channels_last(*shortcut) : Tensor();
  Tensor output = new_like(input);
  if (output.numel() == 0) return output;
  const Operands operands(statistics, scale, shift);
  NormAddParams params = prepare(NormAddPass::forward, input, operands, relu, training, eps);
  params.shortcut = shortcut ? added.const_data_ptr() : nullptr;
  params.output = output.mutable_data_ptr();
  run(params, input);
  return output;
}

// The gradients of input, scale, shift and shortcut; without an affine map those of scale and shift
// are empty, and without `shortcut_grad` that of the shortcut. Without ReLU the latter would be
// `grad` itself, so it is not asked for. `output`: what the forward pass gave, if it was rectified
// and a shortcut was added to it.
template <class Run>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Run& run, const Tensor& grad_any, const Tensor& input_any, const Tensor& statistics,
    const MaybeTensor& scale, const MaybeTensor& shift, const MaybeTensor& output, bool relu,
    bool shortcut_grad, bool training, double eps) {
  const char* name = "norm_add_backward";
  check(name, input_any, statistics, scale, shift);
  check_like(name, "grad", grad_any, input_any);
  if (output) check_like(name, "output", *output, input_any);
  CWK_CHECK(!shortcut_grad || (relu && output), name, "output",
            "the output, for the shortcut's gradient", "none");
  const Tensor input = channels_last(input_any);
  const int64_t d = input.dim() - 4, channels = input.size(d + 1);
  const bool dense_channels = grad_any.stride(d + 1) == 1 || channels == 1;
  const Tensor grad = dense_channels ? grad_any : channels_last(grad_any);
  const bool is_saved = relu && output;
  const Tensor saved = is_saved ? channels_last(*output) : Tensor();
  Tensor grad_input = new_like(input);
  Tensor grad_scale = new_vector(input, scale ? channels : 0);
  Tensor grad_shift = new_vector(input, scale ? channels : 0);
  // A tensor of no elements stands for a gradient that nobody asked for.
  Tensor grad_shortcut =
      shortcut_grad ? new_like(input) : torch::stable::new_empty(input, std::vector<int64_t>{0});
  if (input.numel() == 0) {
    return {grad_input, torch::stable::zero_(grad_scale), torch::stable::zero_(grad_shift),
            grad_shortcut};
  }
  const Operands operands(statistics, scale, shift);
  NormAddParams params = prepare(NormAddPass::backward, input, operands, relu, training, eps);
  params.grad_output = grad.const_data_ptr();
  params.grad_strides = {d == 1 ? grad.stride(0) : 0, grad.stride(d), grad.stride(d + 2),
                         grad.stride(d + 3)};
  params.saved_output = is_saved ? saved.const_data_ptr() : nullptr;
  params.grad_input = grad_input.mutable_data_ptr();
  params.grad_scale = scale ? grad_scale.mutable_data_ptr() : nullptr;
  params.grad_shift = scale ? grad_shift.mutable_data_ptr() : nullptr;
  params.grad_shortcut = shortcut_grad ? grad_shortcut.mutable_data_ptr() : nullptr;
  run(params, input);
  return {grad_input, grad_scale, grad_shift, grad_shortcut};
}

void run_cpu(NormAddParams& params, const Tensor& /*input*/) {
  params.parallel = cpu_parallel();
  CWK_RUN_CPU(norm_add, params);
}

Tensor norm_add_cpu(const Tensor& input, const Tensor& statistics, const MaybeTensor& scale,
                    const MaybeTensor& shift, const MaybeTensor& shortcut, bool relu, bool training,
                    double eps) {
  check_cpu_activations("norm_add", "input", input);
  return forward(run_cpu, input, statistics, scale, shift, shortcut, relu, training, eps);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_add_backward_cpu(
    const Tensor& grad, const Tensor& input, const Tensor& statistics, const MaybeTensor& scale,
    const MaybeTensor& shift, const MaybeTensor& output, bool relu, bool shortcut_grad,
    bool training, double eps) {
  check_cpu_activations("norm_add_backward", "input", input);
  return backward(run_cpu, grad, input, statistics, scale, shift, output, relu, shortcut_grad,
                  training, eps);
}

#if CWK_WITH_CUDA
auto run_gpu(const GpuCall& call) {
  return [&call](NormAddParams& params, const Tensor& input) {
    CWK_RUN_GPU(call, norm_add, params, input);
  };
}

Tensor norm_add_gpu(const Tensor& input, const Tensor& statistics, const MaybeTensor& scale,
                    const MaybeTensor& shift, const MaybeTensor& shortcut, bool relu, bool training,
                    double eps) {
  const GpuCall call("norm_add", input);
  return forward(run_gpu(call), input, statistics, scale, shift, shortcut, relu, training, eps);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_add_backward_gpu(
    const Tensor& grad, const Tensor& input, const Tensor& statistics, const MaybeTensor& scale,
    const MaybeTensor& shift, const MaybeTensor& output, bool relu, bool shortcut_grad,
    bool training, double eps) {
  const GpuCall call("norm_add_backward", input);
  return backward(run_gpu(call), grad, input, statistics, scale, shift, output, relu, shortcut_grad,
                  training, eps);
}
#endif

}  // namespace
}  // namespace cwkernels

CWK_SCHEMAS(m) {
  m.def(
      "norm_add(Tensor input, Tensor statistics, Tensor? scale, Tensor? shift, Tensor? shortcut, "
      "bool relu, bool training, float eps) -> Tensor");
  m.def(
      "norm_add_backward(Tensor grad, Tensor input, Tensor statistics, Tensor? scale, "
      "Tensor? shift, Tensor? output, bool relu, bool shortcut_grad, bool training, float eps) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
}

CWK_CPU_FUNCTIONS(m) {
  m.impl("norm_add", TORCH_BOX(&cwkernels::norm_add_cpu));
  m.impl("norm_add_backward", TORCH_BOX(&cwkernels::norm_add_backward_cpu));
}

#if CWK_WITH_CUDA
CWK_GPU_FUNCTIONS(m) {
  m.impl("norm_add", TORCH_BOX(&cwkernels::norm_add_gpu));
  m.impl("norm_add_backward", TORCH_BOX(&cwkernels::norm_add_backward_gpu));
}
#endif
