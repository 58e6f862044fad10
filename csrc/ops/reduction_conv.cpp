#include "reduction_conv.h"

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
using Three = std::tuple<Tensor, Tensor, Tensor>;

struct Arguments {
  Tensor input, weight, shortcut;
};

// Dense arguments, checked as far as memory safety asks: the public function says the rest better.
Arguments check(const char* name, const Tensor& input, const Tensor& weight,
                const Tensor& shortcut) {
  const int64_t d = input.dim();
  CWK_CHECK(d == 4 || d == 5, name, "input", "[N, C, H, W] or [A, N, C, H, W]", describe(input));
  check_activations(name, "input", input);
  CWK_CHECK(input.size(d - 2) % 2 == 0 && input.size(d - 1) % 2 == 0, name, "input",
            "an even height and width", describe(input));
  const int64_t channels = input.size(d - 3);
  const int64_t outputs = weight.dim() == 4 ? weight.size(0) : 0;
  for (const auto& [argument, tensor, size] :
       {std::tuple("weight", &weight, int64_t{3}), std::tuple("shortcut", &shortcut, int64_t{1})}) {
    const bool fits = tensor->dim() == 4 && tensor->size(0) == outputs &&
                      tensor->size(1) == channels && tensor->size(2) == size &&
                      tensor->size(3) == size && tensor->scalar_type() == parameter_type(input);
    const std::string taps = std::to_string(size);
    CWK_CHECK(fits, name, argument,
              "[K, " + std::to_string(channels) + ", " + taps + ", " + taps + "]",
              describe(*tensor));
    check_same_device(name, argument, *tensor, input);
  }
  return {dense_images(input), torch::stable::contiguous(weight),
          torch::stable::contiguous(shortcut)};
}

ConvNormParams convolution(const Tensor& input, const Tensor& weight, bool winograd) {
  const int64_t d = input.dim();
  ConvNormParams params{};
  params.input = input.const_data_ptr();
  params.weight = weight.const_data_ptr();
  params.architectures = d == 5 ? input.size(0) : 1;
  params.images = input.size(d - 4);
  params.input_channels = input.size(d - 3);
  params.output_channels = weight.size(0);
  params.height = input.size(d - 2);
  params.width = input.size(d - 1);
  params.kernel_size = weight.size(3);
  params.stride = 1;
  params.winograd = winograd;
  params.double_precision = input.scalar_type() == ScalarType::Double;
  params.bf16_images = is_bf16(input);
  params.parallel = cpu_parallel();
  return params;
}

ReductionConvParams prepare(const Arguments& arguments, bool winograd) {
  ReductionConvParams params{};
  params.conv = convolution(arguments.input, arguments.weight, winograd);
  params.conv.relu = true;
  params.conv.stride = 2;
  params.shortcut = convolution(arguments.input, arguments.shortcut, winograd);
  params.shortcut.pool = true;
  return params;
}

// [N, H', W', K] of either output, with A in front if the input has it.
std::vector<int64_t> output_size(const ConvNormParams& p, bool several) {
  std::vector<int64_t> size;
  if (several) size.push_back(p.architectures);
  size.insert(size.end(), {p.images, p.height / 2, p.width / 2, p.output_channels});
  return size;
}

template <class Run>
Three forward(const Run& run, const Tensor& input, const Tensor& weight, const Tensor& shortcut,
              bool winograd) {
  const Arguments arguments = check("reduction_conv", input, weight, shortcut);
  ReductionConvParams params = prepare(arguments, winograd);
  const bool several = input.dim() == 5;
  const std::vector<int64_t> size = output_size(params.conv, several);
  Tensor output = new_images(arguments.input, size), other = new_images(arguments.input, size);
  std::vector<int64_t> measured_size{2, params.conv.output_channels};
  if (several) measured_size.insert(measured_size.begin(), params.conv.architectures);
  Tensor measured = torch::stable::new_empty(weight, measured_size);
  // The shortcut is not normalised, but whoever convolves measures.
  const Tensor unread = torch::stable::new_empty(weight, measured_size);
  params.conv.output = output.mutable_data_ptr();
  params.conv.measured = measured.mutable_data_ptr();
  params.shortcut.output = other.mutable_data_ptr();
  params.shortcut.measured = unread.mutable_data_ptr();
  if (output.numel() == 0) return {output, torch::stable::zero_(measured), other};
  run(params);
  return {output, measured, other};
}

template <class Run>
Three backward(const Run& run, const Tensor& grad, const Tensor& grad_shortcut, const Tensor& input,
               const Tensor& weight, const Tensor& shortcut, bool winograd, bool need_input) {
  const char* name = "reduction_conv_backward";
  const Arguments arguments = check(name, input, weight, shortcut);
  ReductionConvParams params = prepare(arguments, winograd);
  int64_t wanted = 1;
  for (const int64_t size : output_size(params.conv, input.dim() == 5)) wanted *= size;
  for (const auto& [argument, tensor] :
       {std::tuple("grad", &grad), std::tuple("grad_shortcut", &grad_shortcut)}) {
    CWK_CHECK(tensor->dim() == input.dim() && tensor->numel() == wanted &&
                  tensor->scalar_type() == input.scalar_type(),
              name, argument, "the shape and dtype of reduction_conv's outputs", describe(*tensor));
    check_same_device(name, argument, *tensor, input);
  }
  const Tensor own = dense_images(grad), other = dense_images(grad_shortcut);
  const Tensor last = channels_behind(arguments.input);
  std::vector<int64_t> size;
  for (int64_t d = 0; d < last.dim(); ++d) size.push_back(last.size(d));
  if (!need_input) size = {0};
  Tensor grad_input = need_input ? new_images(input, size) : torch::stable::new_empty(input, size);
  Tensor grad_weight = torch::stable::empty_like(arguments.weight);
  Tensor grad_other = torch::stable::empty_like(arguments.shortcut);
  if (wanted == 0) {
    return {torch::stable::zero_(grad_input), torch::stable::zero_(grad_weight),
            torch::stable::zero_(grad_other)};
  }
  params.conv.grad_output = own.const_data_ptr();
  params.conv.grad_input = need_input ? grad_input.mutable_data_ptr() : nullptr;
  params.conv.grad_weight = grad_weight.mutable_data_ptr();
  params.shortcut.grad_output = other.const_data_ptr();
  params.shortcut.grad_weight = grad_other.mutable_data_ptr();
  run(params);
  return {grad_input, grad_weight, grad_other};
}

Three reduction_conv_cpu(const Tensor& input, const Tensor& weight, const Tensor& shortcut,
                         bool winograd) {
  check_cpu_activations("reduction_conv", "input", input);
  const auto run = [](ReductionConvParams& params) { CWK_RUN_CPU(reduction_conv, params); };
  return forward(run, input, weight, shortcut, winograd);
}
Three reduction_conv_backward_cpu(const Tensor& grad, const Tensor& grad_shortcut,
                                  const Tensor& input, const Tensor& weight, const Tensor& shortcut,
                                  bool winograd, bool need_input) {
  check_cpu_activations("reduction_conv_backward", "input", input);
  const auto run = [](ReductionConvParams& params) {
    CWK_RUN_CPU(reduction_conv_backward, params);
  };
  return backward(run, grad, grad_shortcut, input, weight, shortcut, winograd, need_input);
}

#if CWK_WITH_CUDA
Three reduction_conv_gpu(const Tensor& input, const Tensor& weight, const Tensor& shortcut,
                         bool winograd) {
  const GpuCall call("reduction_conv", input);
  const auto run = [&](ReductionConvParams& params) {
    CWK_RUN_GPU(call, reduction_conv, params, input);
  };
  return forward(run, input, weight, shortcut, winograd);
}
Three reduction_conv_backward_gpu(const Tensor& grad, const Tensor& grad_shortcut,
                                  const Tensor& input, const Tensor& weight, const Tensor& shortcut,
                                  bool winograd, bool need_input) {
  const GpuCall call("reduction_conv_backward", grad);
  check_same_device("reduction_conv_backward", "input", input, grad);
  const auto run = [&](ReductionConvParams& params) {
    CWK_RUN_GPU(call, reduction_conv_backward, params, input);
  };
  return backward(run, grad, grad_shortcut, input, weight, shortcut, winograd, need_input);
}
#endif

}  // namespace
}  // namespace cwkernels

CWK_SCHEMAS(m) {
  m.def(
      "reduction_conv(Tensor input, Tensor weight, Tensor shortcut, bool winograd) -> (Tensor, "
      "Tensor, Tensor)");
  m.def(
      "reduction_conv_backward(Tensor grad, Tensor grad_shortcut, Tensor input, Tensor weight, "
      "Tensor shortcut, bool winograd, bool need_input) -> (Tensor, Tensor, Tensor)");
}

CWK_CPU_FUNCTIONS(m) {
  m.impl("reduction_conv", TORCH_BOX(&cwkernels::reduction_conv_cpu));
  m.impl("reduction_conv_backward", TORCH_BOX(&cwkernels::reduction_conv_backward_cpu));
}

#if CWK_WITH_CUDA
CWK_GPU_FUNCTIONS(m) {
  m.impl("reduction_conv", TORCH_BOX(&cwkernels::reduction_conv_gpu));
  m.impl("reduction_conv_backward", TORCH_BOX(&cwkernels::reduction_conv_backward_gpu));
}
#endif
