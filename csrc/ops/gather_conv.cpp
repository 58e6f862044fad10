#include "gather_conv.h"

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "../binding/checks.h"
#include "../binding/cpu.h"
#include "../binding/gpu_scratch.h"
#include "../binding/images.h"
#include "../binding/registration.h"
#include "../binding/stream.h"

namespace cwkernels {
namespace {

using torch::headeronly::ScalarType;

// As it is where channels are dense, else a channels-last copy. Sliced and expanded tensors keep
// their strides; an expanded or NCHW one is copied, never misread.
Tensor channels_dense(const Tensor& tensor) {
  if (tensor.stride(2) == 1 || tensor.size(2) == 1) return tensor;
  return channels_before(torch::stable::contiguous(channels_behind(tensor)));
}

PixelStrides pixel_strides(const Tensor& tensor, int64_t architectures) {
  const bool shared = tensor.size(0) == 1 && architectures != 1;
  return {shared ? 0 : tensor.stride(0), tensor.stride(1), tensor.stride(3), tensor.stride(4)};
}

struct Convolution {
  const char* operation;
  int64_t architectures, kernel_size, stride;
  bool depthwise, winograd;
};

void check_images(const char* operation, const char* argument, const Tensor& tensor) {
  CWK_CHECK(tensor.dim() == 5, operation, argument, "[A, N, C, H, W]", describe(tensor));
  check_activations(operation, argument, tensor);
  CWK_CHECK(tensor.size(2) > 0 && tensor.size(3) > 0 && tensor.size(4) > 0, operation, argument,
            "at least one channel and one pixel", describe(tensor));
}

void check_shape(const Convolution& conv, int64_t groups, int64_t input_channels,
                 int64_t output_channels) {
  const int64_t k = conv.kernel_size;
  CWK_CHECK(k == 1 || k == 3 || k == 5 || k == 7, conv.operation, "kernel size", "1, 3, 5 or 7", k);
  CWK_CHECK(conv.stride == 1 || conv.stride == 2, conv.operation, "stride", "1 or 2", conv.stride);
  CWK_CHECK(groups == 1 || (groups == input_channels && groups == output_channels), conv.operation,
            "groups", "1, or the number of input and output channels", groups);
}

Convolution check_weight(const char* operation, const Tensor& images, const Tensor& weight,
                         const Tensor& rows, int64_t stride, int64_t groups, bool winograd) {
  check_images(operation, "input", images);
  CWK_CHECK(weight.dim() == 5 && weight.is_contiguous() && weight.size(3) == weight.size(4),
            operation, "weight", "a contiguous bank [S, K, C / groups, R, R]", describe(weight));
  CWK_CHECK(weight.scalar_type() == parameter_type(images), operation, "weight",
            is_bf16(images) ? "float32" : dtype_name(images), dtype_name(weight));
  check_rows(operation, rows, weight.size(0));
  return {operation, rows.numel(), weight.size(3), stride, groups != 1, winograd};
}

void check_architectures(const Convolution& conv, const char* argument, const Tensor& tensor) {
  CWK_CHECK(tensor.size(0) == conv.architectures || tensor.size(0) == 1, conv.operation, argument,
            "1 or " + std::to_string(conv.architectures) + " (one for each row) in dimension 0",
            tensor.size(0));
}

int64_t output_size(int64_t input_size, int64_t stride) { return (input_size - 1) / stride + 1; }

GatherConvParams prepare(const Convolution& conv, ConvPass pass, const Tensor& input,
                         const Tensor& output) {
  GatherConvParams params{};
  params.pass = pass;
  params.depthwise = conv.depthwise;
  params.winograd = conv.winograd;
  params.double_precision = input.scalar_type() == ScalarType::Double;
  params.bf16_images = is_bf16(input);
  params.input = input.data_ptr();
  params.output = output.data_ptr();
  params.input_strides = pixel_strides(input, conv.architectures);
  params.output_strides = pixel_strides(output, conv.architectures);
  params.architectures = conv.architectures;
  params.images = input.size(1);
  params.input_channels = input.size(2);
  params.input_height = input.size(3);
  params.input_width = input.size(4);
  params.output_channels = output.size(2);
  params.output_height = output.size(3);
  params.output_width = output.size(4);
  params.kernel_size = conv.kernel_size;
  params.stride = conv.stride;
  params.parallel = cpu_parallel();
  return params;
}

struct OnCpu {
  void operator()(GatherConvParams& params) const { CWK_RUN_CPU(gather_conv, params); }
};

// dense_grad is for autograd, which reads it from the call.
template <class Run>
Tensor forward(const Run& run, const Tensor& images, const Tensor& weight, const Tensor& rows,
               int64_t stride, int64_t groups, bool winograd) {
  const Convolution conv =
      check_weight("gather_conv", images, weight, rows, stride, groups, winograd);
  const int64_t channels = images.size(2);
  check_architectures(conv, "input", images);
  CWK_CHECK(weight.size(2) * groups == channels, "gather_conv", "input",
            std::to_string(weight.size(2) * groups) + " channels", channels);
  check_shape(conv, groups, channels, weight.size(1));
  const Tensor input = channels_dense(images);
  Tensor output =
      new_channels_last(input, conv.architectures, input.size(1), weight.size(1),
                        output_size(input.size(3), stride), output_size(input.size(4), stride));
  GatherConvParams params = prepare(conv, ConvPass::forward, input, output);
  params.weight = weight.const_data_ptr();
  params.rows = static_cast<const int64_t*>(rows.const_data_ptr());
  if (output.numel() > 0) run(params);
  return output;
}

template <class Run>
Tensor backward_input(const Run& run, const Tensor& grad, const Tensor& weight, const Tensor& rows,
                      std::vector<int64_t> input_shape, int64_t stride, int64_t groups,
                      bool winograd) {
  const char* name = "gather_conv_backward_input";
  const Convolution conv = check_weight(name, grad, weight, rows, stride, groups, winograd);
  CWK_CHECK(
      input_shape.size() == 5 && input_shape[2] > 0 && input_shape[3] > 0 && input_shape[4] > 0,
      name, "input_shape", "5 sizes, at least one channel and one pixel", input_shape.size());
  CWK_CHECK(grad.size(0) == conv.architectures && grad.size(1) == input_shape[1] &&
                grad.size(2) == weight.size(1) &&
                grad.size(3) == output_size(input_shape[3], stride) &&
                grad.size(4) == output_size(input_shape[4], stride),
            name, "grad", "the shape of gather_conv's output", describe(grad));
  check_shape(conv, groups, input_shape[2], weight.size(1));
  const Tensor output = channels_dense(grad);
  Tensor input = new_channels_last(output, input_shape[0], input_shape[1], input_shape[2],
                                   input_shape[3], input_shape[4]);
  check_architectures(conv, "input_shape", input);
  if (input.numel() == 0) return input;
  if (conv.architectures == 0) return torch::stable::zero_(input);
  GatherConvParams params = prepare(conv, ConvPass::backward_input, input, output);
  params.weight = weight.const_data_ptr();
  params.rows = static_cast<const int64_t*>(rows.const_data_ptr());
  run(params);
  return input;
}

// The distinct rows, sorted, and the place of each architecture's row among them.
std::tuple<Tensor, std::vector<int64_t>> distinct(const Tensor& rows) {
  const int64_t* values = static_cast<const int64_t*>(rows.const_data_ptr());
  std::vector<int64_t> unique(values, values + rows.numel());
  std::sort(unique.begin(), unique.end());
  unique.erase(std::unique(unique.begin(), unique.end()), unique.end());
  std::vector<int64_t> slots;
  for (int64_t a = 0; a < rows.numel(); ++a) {
    slots.push_back(std::lower_bound(unique.begin(), unique.end(), values[a]) - unique.begin());
  }
  Tensor result =
      torch::stable::new_empty(rows, std::vector<int64_t>{static_cast<int64_t>(unique.size())});
  std::copy(unique.begin(), unique.end(), static_cast<int64_t*>(result.mutable_data_ptr()));
  return {result, slots};
}

template <class Run>
std::tuple<Tensor, Tensor> backward_weight(const Run& run, const Tensor& grad, const Tensor& images,
                                           const Tensor& rows, int64_t kernel_size, int64_t stride,
                                           int64_t groups, bool winograd) {
  const char* name = "gather_conv_backward_weight";
  check_images(name, "grad", grad);
  check_images(name, "input", images);
  check_rows(name, rows, INT64_MAX);
  const Convolution conv{name, rows.numel(), kernel_size, stride, groups != 1, winograd};
  check_architectures(conv, "input", images);
  check_shape(conv, groups, images.size(2), grad.size(2));
  CWK_CHECK(grad.size(0) == conv.architectures && grad.size(1) == images.size(1) &&
                grad.size(3) == output_size(images.size(3), stride) &&
                grad.size(4) == output_size(images.size(4), stride) &&
                grad.scalar_type() == images.scalar_type(),
            name, "grad", "the shape and dtype of gather_conv's output", describe(grad));
  const Tensor output = channels_dense(grad);
  const Tensor input = channels_dense(images);
  auto [unique, slots] = distinct(rows);
  Tensor values = torch::stable::new_empty(
      input,
      std::vector<int64_t>{unique.numel(), grad.size(2), images.size(2) / groups, kernel_size,
                           kernel_size},
      parameter_type(input));
  GatherConvParams params = prepare(conv, ConvPass::backward_weight, input, output);
  params.weight_grad = values.mutable_data_ptr();
  params.slots = slots.data();
  params.slot_count = unique.numel();
  if (values.numel() > 0) run(params);
  return {unique, values};
}

Tensor gather_conv_cpu(const Tensor& images, const Tensor& weight, const Tensor& rows,
                       int64_t stride, int64_t groups, bool /*dense_grad*/, bool winograd) {
  check_cpu_activations("gather_conv", "input", images);
  return forward(OnCpu{}, images, weight, rows, stride, groups, winograd);
}
Tensor backward_input_cpu(const Tensor& grad, const Tensor& weight, const Tensor& rows,
                          std::vector<int64_t> input_shape, int64_t stride, int64_t groups,
                          bool winograd) {
  check_cpu_activations("gather_conv_backward_input", "grad", grad);
  return backward_input(OnCpu{}, grad, weight, rows, std::move(input_shape), stride, groups,
                        winograd);
}
std::tuple<Tensor, Tensor> backward_weight_cpu(const Tensor& grad, const Tensor& images,
                                               const Tensor& rows, int64_t kernel_size,
                                               int64_t stride, int64_t groups, bool winograd) {
  check_cpu_activations("gather_conv_backward_weight", "grad", grad);
  return backward_weight(OnCpu{}, grad, images, rows, kernel_size, stride, groups, winograd);
}

#if CWK_WITH_CUDA
// Rows stay on the CPU: the launches carry them.
class OnGpu {
 public:
  OnGpu(const char* operation, const Tensor& on, const Tensor& rows)
      : call_(operation, on), on_(on) {
    CWK_CHECK(rows.is_cpu(), operation, "rows", "a tensor on the CPU", "one on another device");
  }

  void operator()(GatherConvParams& params) const {
    const GpuScratch scratch(gather_conv_cuda_scratch(params), on_);
    params.workspace = scratch.data();
    call_.check(gather_conv_cuda(params, call_.stream()));
  }

 private:
  GpuCall call_;
  Tensor on_;
};

Tensor gather_conv_gpu(const Tensor& images, const Tensor& weight, const Tensor& rows,
                       int64_t stride, int64_t groups, bool /*dense_grad*/, bool winograd) {
  const OnGpu run("gather_conv", images, rows);
  check_same_device("gather_conv", "weight", weight, images);
  return forward(run, images, weight, rows, stride, groups, winograd);
}
Tensor backward_input_gpu(const Tensor& grad, const Tensor& weight, const Tensor& rows,
                          std::vector<int64_t> input_shape, int64_t stride, int64_t groups,
                          bool winograd) {
  const OnGpu run("gather_conv_backward_input", grad, rows);
  check_same_device("gather_conv_backward_input", "weight", weight, grad);
  return backward_input(run, grad, weight, rows, std::move(input_shape), stride, groups, winograd);
}
std::tuple<Tensor, Tensor> backward_weight_gpu(const Tensor& grad, const Tensor& images,
                                               const Tensor& rows, int64_t kernel_size,
                                               int64_t stride, int64_t groups, bool winograd) {
  const OnGpu run("gather_conv_backward_weight", grad, rows);
  check_same_device("gather_conv_backward_weight", "input", images, grad);
  return backward_weight(run, grad, images, rows, kernel_size, stride, groups, winograd);
}
#endif

}  // namespace
}  // namespace cwkernels

CWK_SCHEMAS(m) {
  m.def(
      "gather_conv(Tensor input, Tensor weight, Tensor rows, int stride, int groups, "
      "bool dense_grad, bool winograd=False) -> Tensor");
  m.def(
      "gather_conv_backward_input(Tensor grad, Tensor weight, Tensor rows, SymInt[] input_shape, "
      "int stride, int groups, bool winograd=False) -> Tensor");
  m.def(
      "gather_conv_backward_weight(Tensor grad, Tensor input, Tensor rows, int kernel_size, "
      "int stride, int groups, bool winograd=False) -> (Tensor, Tensor)");
}

CWK_CPU_FUNCTIONS(m) {
  m.impl("gather_conv", TORCH_BOX(&cwkernels::gather_conv_cpu));
  m.impl("gather_conv_backward_input", TORCH_BOX(&cwkernels::backward_input_cpu));
  m.impl("gather_conv_backward_weight", TORCH_BOX(&cwkernels::backward_weight_cpu));
}

#if CWK_WITH_CUDA
CWK_GPU_FUNCTIONS(m) {
  m.impl("gather_conv", TORCH_BOX(&cwkernels::gather_conv_gpu));
  m.impl("gather_conv_backward_input", TORCH_BOX(&cwkernels::backward_input_gpu));
  m.impl("gather_conv_backward_weight", TORCH_BOX(&cwkernels::backward_weight_gpu));
}
#endif
