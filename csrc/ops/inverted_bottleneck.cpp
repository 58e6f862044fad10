#include "inverted_bottleneck.h"

#include <algorithm>
#include <array>
#include <string>
#include <tuple>
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
using Tensors = std::vector<Tensor>;
using Shape = std::vector<int64_t>;

const char* const kName = "inverted_bottleneck";

std::string sizes(const Shape& shape) {
  std::string text = "[";
  for (size_t d = 0; d < shape.size(); ++d) text += (d ? ", " : "") + std::to_string(shape[d]);
  return text + "]";
}

Shape shape_of(const Tensor& tensor) {
  Shape shape;
  for (int64_t d = 0; d < tensor.dim(); ++d) shape.push_back(tensor.size(d));
  return shape;
}

Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// A call's tensors, dense in memory, and its params, which point into them.
struct Call {
  Tensor input, selection;
  std::array<Tensors, 5> groups;  // weights, scales, shifts, running mean and variance
  InvertedBottleneckParams params;

  const Tensors& weights() const { return groups[0]; }
};

// Whether the choice lies on the device, int32, for kernels to read; else it is int64 on the CPU.
bool chosen_on_device(const Tensor& selection) {
  return selection.scalar_type() == ScalarType::Int;
}

void check_form(const Tensor& images, const Tensor& selection, bool kernels_read) {
  const bool known = selection.scalar_type() == ScalarType::Long;
  CWK_CHECK(
      (known || (kernels_read && chosen_on_device(selection))) && selection.dim() == 2 &&
          selection.size(0) > 0 && selection.size(1) == 2,
      kName, "selection",
      kernels_read ? "int64 or int32 [A, 2]" : "int64 [A, 2], as the CPU's kernels plan by it",
      dtype_name(selection) + (" " + describe(selection)));
  if (known) {
    CWK_CHECK(selection.is_cpu(), kName, "selection", "a tensor on the CPU", "one elsewhere");
  } else {
    check_same_device(kName, "selection", selection, images);
  }
}

void check_images(const Tensor& images, const Tensor& selection) {
  check_activations(kName, "input", images);
  CWK_CHECK(images.dim() == 5 && (images.size(0) == 1 || images.size(0) == selection.size(0)) &&
                images.size(2) > 0 && images.size(3) > 0 && images.size(4) > 0,
            kName, "input", "[1 or A, N, C, H, W], at least one channel and one pixel",
            describe(images));
}

void check_tensor(const std::string& name, const Tensor& tensor, ScalarType dtype,
                  const Shape& wanted) {
  CWK_CHECK(tensor.scalar_type() == dtype && shape_of(tensor) == wanted, kName, name,
            dtype_name(dtype) + (" " + sizes(wanted)),
            dtype_name(tensor) + (" " + describe(tensor)));
}

// The shapes that go with sets, channels and kernel sizes of the banks.
std::vector<Shape> bank_shapes(const Tensors& weights, int64_t stride) {
  for (size_t i : {0, 1, 2, 3, 4}) {
    CWK_CHECK(i < weights.size() && weights[i].dim() == 5, kName, entry("weights", i),
              "a bank of 5 dimensions", "another");
  }
  const int64_t sets = weights[0].size(0), in = weights[0].size(2), out = weights[2].size(1);
  std::vector<Shape> shapes;
  for (size_t first : {0, 3}) {
    const int64_t hidden = weights[first].size(1), size = weights[first + 1].size(4);
    CWK_CHECK(size == 1 || size == 3 || size == 5 || size == 7, kName, "kernel size",
              "1, 3, 5 or 7", size);
    shapes.push_back({sets, hidden, in, 1, 1});
    shapes.push_back({sets, hidden, 1, size, size});
    shapes.push_back({sets, out, hidden, 1, 1});
  }
  if (stride != 1 || in != out) shapes.push_back({sets, out, in, 1, 1});
  return shapes;
}

void check_banks(const Tensor& images, const std::array<Tensors, 5>& groups, int64_t stride,
                 bool training) {
  CWK_CHECK(stride == 1 || stride == 2, kName, "stride", "1 or 2", stride);
  const std::vector<Shape> shapes = bank_shapes(groups[0], stride);
  CWK_CHECK(images.size(2) == shapes[0][2], kName, "input",
            std::to_string(shapes[0][2]) + " channels", images.size(2));
  const char* const names[] = {"weights", "scales", "shifts", "running_mean", "running_var"};
  for (size_t g = 0; g < (training ? 3 : groups.size()); ++g) {
    CWK_CHECK(groups[g].size() == shapes.size(), kName, names[g],
              std::to_string(shapes.size()) + " banks", groups[g].size());
    for (size_t i = 0; i < shapes.size(); ++i) {
      check_tensor(entry(names[g], i), groups[g][i], parameter_type(images),
                   g == 0 ? shapes[i] : Shape{shapes[i][0], shapes[i][1]});
    }
  }
}

void check_choices(const Tensor& selection, int64_t sets) {
  const int64_t* values = static_cast<const int64_t*>(selection.const_data_ptr());
  for (int64_t i = 0; i < selection.numel(); ++i) {
    const int64_t end = i % 2 ? sets : 3;
    CWK_CHECK(values[i] >= 0 && values[i] < end, kName, "selection",
              (i % 2 ? "a row in [0, " : "a code in [0, ") + std::to_string(end) + ")", values[i]);
  }
}

// Checks all and points the params at it; nothing is allocated unless a tensor is not dense.
// kernels_read: those that will run can read the choice on the device.
Call prepare(const Tensor& images, const Tensor& selection, bool kernels_read,
             std::array<Tensors, 5> groups, int64_t stride, bool training, double eps,
             bool recompute, bool tf32) {
  check_form(images, selection, kernels_read);
  check_images(images, selection);
  check_banks(images, groups, stride, training);
  Call call{dense_images(images), dense(selection), std::move(groups), {}};
  InvertedBottleneckParams& params = call.params;
  params.sets = call.weights()[0].size(0);
  if (chosen_on_device(selection)) {
    params.chosen = static_cast<const int32_t*>(call.selection.const_data_ptr());
  } else {
    check_choices(call.selection, params.sets);
    params.selection = static_cast<const int64_t*>(call.selection.const_data_ptr());
  }
  const void** const pointers[] = {params.weights, params.scales, params.shifts,
                                   params.running_mean, params.running_var};
  for (size_t g = 0; g < (training ? 3 : call.groups.size()); ++g) {
    for (size_t i = 0; i < call.groups[g].size(); ++i) {
      call.groups[g][i] = dense(call.groups[g][i]);
      pointers[g][i] = call.groups[g][i].const_data_ptr();
    }
  }
  params.input = call.input.const_data_ptr();
  params.architectures = selection.size(0);
  params.images = images.size(1);
  params.input_channels = images.size(2);
  params.height = images.size(3);
  params.width = images.size(4);
  params.input_architecture_stride = images.size(0) == 1 ? 0 : call.input.stride(0);
  params.output_channels = call.weights()[2].size(1);
  for (int64_t i : {0, 1}) {
    params.hidden_channels[i] = call.weights()[3 * i].size(1);
    params.kernel_size[i] = call.weights()[3 * i + 1].size(4);
  }
  params.stride = stride;
  params.eps = eps;
  params.training = training;
  params.recompute = recompute;
  params.tf32 = tf32;
  params.double_precision = images.scalar_type() == ScalarType::Double;
  params.bf16_images = is_bf16(images);
  return call;
}

// What runs a call; made before anything is allocated.
struct OnCpu {
  static constexpr bool kReadsChoice = false;

  explicit OnCpu(const Tensor& images) { check_cpu_activations(kName, "input", images); }

  void run(InvertedBottleneckParams& params, const Tensor& /*like*/) const {
    params.parallel = cpu_parallel();
    CWK_RUN_CPU(inverted_bottleneck, params);
  }
};

#if CWK_WITH_CUDA
struct OnGpu {
  static constexpr bool kReadsChoice = true;

  explicit OnGpu(const Tensor& images) : call(kName, images) {}

  void run(InvertedBottleneckParams& params, const Tensor& like) const {
    CWK_RUN_GPU(call, inverted_bottleneck, params, like);
  }

  GpuCall call;
};
#endif

// The elements that all architectures keep for backward.
int64_t kept_size(const InvertedBottleneckParams& params) {
  if (params.chosen) return params.architectures * bottleneck_most_kept(params);
  int64_t size = 0;
  for (int64_t a = 0; a < params.architectures; ++a) {
    size += bottleneck_kept(params, params.selection[2 * a]);
  }
  return size;
}

// dense_grad is for autograd, which reads it from the call.
template <class On>
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& images, const Tensor& selection,
                                           Tensors weights, Tensors scales, Tensors shifts,
                                           Tensors running_mean, Tensors running_var,
                                           int64_t stride, bool training, double eps,
                                           bool recompute, bool tf32, bool /*dense_grad*/,
                                           bool keep) {
  const On device(images);
  Call call = prepare(images, selection, On::kReadsChoice,
                      {weights, scales, shifts, running_mean, running_var}, stride, training, eps,
                      recompute, tf32);
  InvertedBottleneckParams& params = call.params;
  Tensor output = new_images(
      images, {params.architectures, params.images, bottleneck_side(params.height, stride),
               bottleneck_side(params.width, stride), params.output_channels});
  const int64_t hidden = std::max(params.hidden_channels[0], params.hidden_channels[1]);
  Tensor statistics =
      new_tensor(call.weights()[0], {params.architectures, 2, 2 * hidden + params.output_channels});
  torch::stable::zero_(statistics);
  Tensor kept = new_tensor(images, {keep ? kept_size(params) : 0});
  params.output = output.mutable_data_ptr();
  params.statistics = statistics.mutable_data_ptr();
  params.kept = keep ? kept.mutable_data_ptr() : nullptr;
  if (output.numel() > 0) device.run(params, images);
  return {output, statistics, kept};
}

// The distinct rows of each code's banks, sorted, and where each architecture's is among them.
struct Distinct {
  std::array<std::vector<int64_t>, 3> rows;
  std::vector<int64_t> slots;

  explicit Distinct(const InvertedBottleneckParams& params) {
    const auto choice = [&](int64_t a, int64_t i) { return params.selection[2 * a + i]; };
    for (int64_t a = 0; a < params.architectures; ++a) rows[choice(a, 0)].push_back(choice(a, 1));
    for (auto& own : rows) {
      std::sort(own.begin(), own.end());
      own.erase(std::unique(own.begin(), own.end()), own.end());
    }
    for (int64_t a = 0; a < params.architectures; ++a) {
      const auto& own = rows[choice(a, 0)];
      slots.push_back(std::lower_bound(own.begin(), own.end(), choice(a, 1)) - own.begin());
    }
  }

  const std::vector<int64_t>& of_bank(size_t bank) const {
    return rows[bank == kBottleneckProjection ? 0 : 1 + bank / 3];
  }
};

Tensor to_tensor(const std::vector<int64_t>& values, const Tensor& like) {
  Tensor tensor = new_tensor(like, {static_cast<int64_t>(values.size())});
  std::copy(values.begin(), values.end(), static_cast<int64_t*>(tensor.mutable_data_ptr()));
  return tensor;
}

// The banks' gradients, in the order of weights, scales and shifts, and the rows that they are of:
// a tensor for each of them; or where the choice lies on the device one, [banks, A], for all three.
struct BankGradients {
  Tensors rows, values;
  std::vector<int64_t> slots;

  BankGradients(Call& call, bool need_weights) {
    call.params.chosen ? by_architecture(call, need_weights) : by_row(call, need_weights);
  }

  // What no image contributed to: zeros of what was read, and if only the device knows that, none.
  void clear(const InvertedBottleneckParams& params) {
    for (Tensor& one : values) torch::stable::zero_(one);
    if (params.chosen) torch::stable::fill_(rows[0], -1);
  }

 private:
  void by_row(Call& call, bool need_weights) {
    const Distinct distinct(call.params);
    for (size_t g = 0; g < 3; ++g) {
      for (size_t i = 0; i < call.weights().size(); ++i) {
        const std::vector<int64_t> own =
            g == 0 && !need_weights ? std::vector<int64_t>{} : distinct.of_bank(i);
        rows.push_back(to_tensor(own, call.selection));
        add(call, g, i, static_cast<int64_t>(own.size()));
      }
    }
    slots = distinct.slots;
    call.params.slots = slots.data();
  }

  void by_architecture(Call& call, bool need_weights) {
    const int64_t count = call.params.architectures;
    rows.push_back(torch::stable::new_empty(
        call.input, Shape{static_cast<int64_t>(call.weights().size()), count}, ScalarType::Long));
    call.params.grad_rows = static_cast<int64_t*>(rows[0].mutable_data_ptr());
    for (size_t g = 0; g < 3; ++g) {
      for (size_t i = 0; i < call.weights().size(); ++i) {
        add(call, g, i, g == 0 && !need_weights ? 0 : count);
      }
    }
  }

  void add(Call& call, size_t group, size_t bank, int64_t count) {
    InvertedBottleneckParams& params = call.params;
    void** const pointers[] = {params.grad_weights, params.grad_scales, params.grad_shifts};
    const Tensor& own = call.groups[group][bank];
    Shape shape = shape_of(own);
    shape[0] = count;
    values.push_back(new_tensor(own, shape));
    pointers[group][bank] = count == 0 ? nullptr : values.back().mutable_data_ptr();
  }
};

template <class On>
std::tuple<Tensor, Tensors, Tensors> backward(const Tensor& grad, const Tensor& images,
                                              const Tensor& selection, Tensors weights,
                                              Tensors scales, Tensors shifts, Tensors running_mean,
                                              Tensors running_var, const Tensor& statistics,
                                              const Tensor& kept, int64_t stride, bool training,
                                              double eps, bool recompute, bool tf32,
                                              bool need_weights) {
  const On device(images);
  Call call = prepare(images, selection, On::kReadsChoice,
                      {weights, scales, shifts, running_mean, running_var}, stride, training, eps,
                      recompute, tf32);
  InvertedBottleneckParams& params = call.params;
  const int64_t hidden = std::max(params.hidden_channels[0], params.hidden_channels[1]);
  check_tensor("kept", kept, images.scalar_type(), {kept_size(params)});
  check_tensor("statistics", statistics, parameter_type(images),
               {params.architectures, 2, 2 * hidden + params.output_channels});
  check_tensor("grad", grad, images.scalar_type(),
               {params.architectures, params.images, params.output_channels,
                bottleneck_side(params.height, stride), bottleneck_side(params.width, stride)});
  const Tensor grad_output = dense_images(grad), measured = dense(statistics);
  const Tensor hidden_tensors = dense(kept);
  Tensor grad_input = new_images(
      images, {images.size(0), params.images, params.height, params.width, images.size(2)});
  BankGradients gradients(call, need_weights);
  const bool empty = grad_input.numel() == 0;
  if (empty) gradients.clear(params);
  params.statistics = const_cast<void*>(measured.const_data_ptr());
  params.kept = const_cast<void*>(hidden_tensors.const_data_ptr());
  params.grad_output = grad_output.const_data_ptr();
  params.grad_input = grad_input.mutable_data_ptr();
  if (!empty) device.run(params, images);
  return {grad_input, gradients.rows, gradients.values};
}

}  // namespace
}  // namespace cwkernels

CWK_SCHEMAS(m) {
  m.def(
      "inverted_bottleneck(Tensor input, Tensor selection, Tensor[] weights, Tensor[] scales, "
      "Tensor[] shifts, Tensor[] running_mean, Tensor[] running_var, int stride, bool training, "
      "float eps, bool recompute, bool tf32, bool dense_grad, bool keep) -> (Tensor, Tensor, "
      "Tensor)");
  m.def(
      "inverted_bottleneck_backward(Tensor grad, Tensor input, Tensor selection, "
      "Tensor[] weights, Tensor[] scales, Tensor[] shifts, Tensor[] running_mean, "
      "Tensor[] running_var, Tensor statistics, Tensor kept, int stride, bool training, "
      "float eps, bool recompute, bool tf32, bool need_weights) -> (Tensor, Tensor[], Tensor[])");
}

CWK_CPU_FUNCTIONS(m) {
  m.impl("inverted_bottleneck", TORCH_BOX(&cwkernels::forward<cwkernels::OnCpu>));
  m.impl("inverted_bottleneck_backward", TORCH_BOX(&cwkernels::backward<cwkernels::OnCpu>));
}

#if CWK_WITH_CUDA
CWK_GPU_FUNCTIONS(m) {
  m.impl("inverted_bottleneck", TORCH_BOX(&cwkernels::forward<cwkernels::OnGpu>));
  m.impl("inverted_bottleneck_backward", TORCH_BOX(&cwkernels::backward<cwkernels::OnGpu>));
}
#endif
