#include "conv_norm.h"

#include <optional>
#include <tuple>
#include <vector>

#include "../binding/cpu.h"
#include "../binding/gpu_scratch.h"
#include "../binding/images.h"
#include "../binding/registration.h"
#include "../binding/stream.h"

// Images are [A, N, C, H, W], or [N, C, H, W] of one architecture.
namespace cwkernels {
namespace {

using torch::headeronly::ScalarType;
using OptionalTensor = std::optional<Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

struct Arguments {
  Tensor input, weight;
  OptionalTensor statistics, scale, shift;
};

OptionalTensor contiguous(const OptionalTensor& tensor) {
  return tensor ? OptionalTensor(torch::stable::contiguous(*tensor)) : std::nullopt;
}

const void* address(const OptionalTensor& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

// Dense arguments, checked as far as memory safety asks: the public function says the rest better.
Arguments check(const char* name, const Tensor& input, const Tensor& weight,
                const OptionalTensor& statistics, const OptionalTensor& scale,
                const OptionalTensor& shift, int64_t stride) {
  const int64_t d = input.dim();
  CWK_CHECK(d == 4 || d == 5, name, "input", "[N, C, H, W] or [A, N, C, H, W]", describe(input));
  check_activations(name, "input", input);
  const auto dtype = parameter_type(input);
  const int64_t channels = input.size(d - 3), lead = d == 5 ? input.size(0) : 1;
  const int64_t size = weight.dim() == 4 ? weight.size(3) : 0;
  CWK_CHECK(size % 2 == 1 && size <= 7 && weight.size(2) == size && weight.size(1) == channels &&
                weight.scalar_type() == dtype,
            name, "weight", "[K, " + std::to_string(channels) + ", R, R] with R in 1, 3, 5, 7",
            describe(weight));
  check_same_device(name, "weight", weight, input);
  CWK_CHECK(stride == 1 || stride == 2, name, "stride", "1 or 2", stride);
  for (const auto& [argument, tensor, numel] :
       {std::tuple("statistics", &statistics, lead * 2 * channels),
        std::tuple("scale", &scale, channels), std::tuple("shift", &shift, channels)}) {
    if (!*tensor) continue;
    CWK_CHECK((*tensor)->numel() == numel && (*tensor)->scalar_type() == dtype, name, argument,
              std::to_string(numel) + " values in the parameters' dtype", describe(**tensor));
    check_same_device(name, argument, **tensor, input);
  }
  return {dense_images(input), torch::stable::contiguous(weight), contiguous(statistics),
          contiguous(scale), contiguous(shift)};
}

ConvNormParams prepare(const Arguments& arguments, bool relu, bool pool, int64_t stride,
                       bool training, double eps, bool winograd) {
  const Tensor& input = arguments.input;
  const int64_t d = input.dim();
  ConvNormParams params{};
  params.input = input.const_data_ptr();
  params.weight = arguments.weight.const_data_ptr();
  params.statistics = address(arguments.statistics);
  params.scale = address(arguments.scale);
  params.shift = address(arguments.shift);
  params.architectures = d == 5 ? input.size(0) : 1;
  params.images = input.size(d - 4);
  params.input_channels = input.size(d - 3);
  params.output_channels = arguments.weight.size(0);
  params.height = input.size(d - 2);
  params.width = input.size(d - 1);
  params.kernel_size = arguments.weight.size(3);
  params.stride = stride;
  params.eps = eps;
  params.relu = relu;
  params.pool = pool;
  params.training = training;
  params.winograd = winograd;
  params.double_precision = input.scalar_type() == ScalarType::Double;
  params.bf16_images = is_bf16(input);
  params.parallel = cpu_parallel();
  return params;
}

// [N, C, H, W] sizes of the output, with A in front if the input has it.
std::vector<int64_t> output_size(const ConvNormParams& p, bool several) {
  const int64_t divisor = p.pool ? 2 : 1;
  std::vector<int64_t> size;
  if (several) size.push_back(p.architectures);
  size.insert(size.end(), {p.images, (p.height / divisor - 1) / p.stride + 1,
                           (p.width / divisor - 1) / p.stride + 1, p.output_channels});
  return size;
}

template <class Run>
std::tuple<Tensor, Tensor> forward(const Run& run, const Tensor& input, const Tensor& weight,
                                   const OptionalTensor& statistics, const OptionalTensor& scale,
                                   const OptionalTensor& shift, bool relu, bool pool,
                                   int64_t stride, bool training, double eps, bool winograd) {
  const Arguments arguments = check("conv_norm", input, weight, statistics, scale, shift, stride);
  ConvNormParams params = prepare(arguments, relu, pool, stride, training, eps, winograd);
  const bool several = input.dim() == 5;
  Tensor output = new_images(arguments.input, output_size(params, several));
  std::vector<int64_t> measured_size{2, params.output_channels};
  if (several) measured_size.insert(measured_size.begin(), params.architectures);
  Tensor measured = torch::stable::new_empty(input, measured_size, parameter_type(input));
  params.output = output.mutable_data_ptr();
  params.measured = measured.mutable_data_ptr();
  if (output.numel() == 0) return {output, torch::stable::zero_(measured)};
  run(params);
  return {output, measured};
}

template <class Run>
Gradients backward(const Run& run, const Tensor& grad, const Tensor& input, const Tensor& weight,
                   const OptionalTensor& statistics, const OptionalTensor& scale,
                   const OptionalTensor& shift, bool relu, bool pool, int64_t stride, bool training,
                   double eps, bool winograd, bool need_input) {
  const char* name = "conv_norm_backward";
  const Arguments arguments = check(name, input, weight, statistics, scale, shift, stride);
  ConvNormParams params = prepare(arguments, relu, pool, stride, training, eps, winograd);
  const Tensor grad_output = dense_images(grad);
  int64_t wanted = 1;
  for (const int64_t size : output_size(params, input.dim() == 5)) wanted *= size;
  CWK_CHECK(grad.dim() == input.dim() && grad.numel() == wanted &&
                grad.scalar_type() == input.scalar_type(),
            name, "grad", "the shape and dtype of conv_norm's output", describe(grad));
  const Tensor none = torch::stable::new_empty(input, std::vector<int64_t>{0});
  const bool skipped = !need_input && !statistics;
  const Tensor last = channels_behind(arguments.input);
  std::vector<int64_t> size;
  for (int64_t d = 0; d < last.dim(); ++d) size.push_back(last.size(d));
  Tensor grad_input = skipped ? none : new_images(input, size);
  Tensor grad_weight = torch::stable::empty_like(arguments.weight);
  const std::vector<int64_t> affine{scale ? params.input_channels : 0};
  Tensor grad_scale = torch::stable::new_empty(weight, affine);
  Tensor grad_shift = torch::stable::new_empty(weight, affine);
  if (wanted == 0) {
    return {torch::stable::zero_(grad_input), torch::stable::zero_(grad_weight),
            torch::stable::zero_(grad_scale), torch::stable::zero_(grad_shift)};
  }
  params.grad_output = grad_output.const_data_ptr();
  params.grad_input = skipped ? nullptr : grad_input.mutable_data_ptr();
  params.grad_weight = grad_weight.mutable_data_ptr();
  params.grad_scale = scale ? grad_scale.mutable_data_ptr() : nullptr;
  params.grad_shift = scale ? grad_shift.mutable_data_ptr() : nullptr;
  run(params);
  return {grad_input, grad_weight, grad_scale, grad_shift};
}

std::tuple<Tensor, Tensor> conv_norm_cpu(const Tensor& input, const Tensor& weight,
                                         const OptionalTensor& statistics,
                                         const OptionalTensor& scale, const OptionalTensor& shift,
                                         bool relu, bool pool, int64_t stride, bool training,
                                         double eps, bool winograd) {
  check_cpu_activations("conv_norm", "input", input);
  const auto run = [](ConvNormParams& params) { CWK_RUN_CPU(conv_norm, params); };
  return forward(run, input, weight, statistics, scale, shift, relu, pool, stride, training, eps,
                 winograd);
}
Gradients conv_norm_backward_cpu(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                 const OptionalTensor& statistics, const OptionalTensor& scale,
                                 const OptionalTensor& shift, bool relu, bool pool, int64_t stride,
                                 bool training, double eps, bool winograd, bool need_input) {
  check_cpu_activations("conv_norm_backward", "input", input);
  const auto run = [](ConvNormParams& params) { CWK_RUN_CPU(conv_norm_backward, params); };
  return backward(run, grad, input, weight, statistics, scale, shift, relu, pool, stride, training,
                  eps, winograd, need_input);
}

#if CWK_WITH_CUDA
std::tuple<Tensor, Tensor> conv_norm_gpu(const Tensor& input, const Tensor& weight,
                                         const OptionalTensor& statistics,
                                         const OptionalTensor& scale, const OptionalTensor& shift,
                                         bool relu, bool pool, int64_t stride, bool training,
                                         double eps, bool winograd) {
  const GpuCall call("conv_norm", input);
  const auto run = [&](ConvNormParams& params) { CWK_RUN_GPU(call, conv_norm, params, input); };
  return forward(run, input, weight, statistics, scale, shift, relu, pool, stride, training, eps,
                 winograd);
}
Gradients conv_norm_backward_gpu(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                 const OptionalTensor& statistics, const OptionalTensor& scale,
                                 const OptionalTensor& shift, bool relu, bool pool, int64_t stride,
                                 bool training, double eps, bool winograd, bool need_input) {
  const GpuCall call("conv_norm_backward", grad);
  check_same_device("conv_norm_backward", "input", input, grad);
  const auto run = [&](ConvNormParams& params) {
    CWK_RUN_GPU(call, conv_norm_backward, params, input);
  };
  return backward(run, grad, input, weight, statistics, scale, shift, relu, pool, stride, training,
                  eps, winograd, need_input);
}
#endif

}  // namespace
}  // namespace cwkernels

CWK_SCHEMAS(m) {
  m.def(
      "conv_norm(Tensor input, Tensor weight, Tensor? statistics, Tensor? scale, Tensor? shift, "
      "bool relu, bool pool, int stride, bool training, float eps, bool winograd) -> (Tensor, "
      "Tensor)");
  m.def(
      "conv_norm_backward(Tensor grad, Tensor input, Tensor weight, Tensor? statistics, "
      "Tensor? scale, Tensor? shift, bool relu, bool pool, int stride, bool training, float eps, "
      "bool winograd, bool need_input) -> (Tensor, Tensor, Tensor, Tensor)");
}

CWK_CPU_FUNCTIONS(m) {
  m.impl("conv_norm", TORCH_BOX(&cwkernels::conv_norm_cpu));
  m.impl("conv_norm_backward", TORCH_BOX(&cwkernels::conv_norm_backward_cpu));
}

#if CWK_WITH_CUDA
CWK_GPU_FUNCTIONS(m) {
  m.impl("conv_norm", TORCH_BOX(&cwkernels::conv_norm_gpu));
  m.impl("conv_norm_backward", TORCH_BOX(&cwkernels::conv_norm_backward_gpu));
}
#endif
