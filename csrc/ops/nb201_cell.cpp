#include "nb201_cell.h"

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "../binding/cpu.h"
#include "../binding/gpu_scratch.h"
#include "../binding/images.h"
#include "../binding/registration.h"
#include "../binding/stream.h"
#include "../parts/cell_plan.h"

// Images are [A or 1, N, C, H, W]; banks come edge by edge: 1 x 1, 3 x 3 and, in networks with a
// skip projection, that one.
namespace cwkernels {
namespace {

using torch::headeronly::ScalarType;
using Tensors = std::vector<Tensor>;

// What each architecture runs: plans that the host has made, or those that lie on the device.
struct Plans {
  std::vector<CellPlan> plans;
  const void* planned = nullptr;
  int64_t architectures = 0;
  int64_t kept = 0;  // rows
};

// Of int64 [A, 6, 2], codes and rows.
Plans plans_by_value(const char* name, const Tensor& selection, const Tensors& weights) {
  CWK_CHECK(selection.dim() == 3 && selection.size(1) == kCellEdges && selection.size(2) == 2 &&
                selection.scalar_type() == ScalarType::Long && selection.is_cpu(),
            name, "selection", "int64 [A, 6, 2] on the CPU",
            dtype_name(selection) + (" " + describe(selection)));
  const Tensor dense = torch::stable::contiguous(selection);
  const int64_t* values = static_cast<const int64_t*>(dense.const_data_ptr());
  const int64_t per_edge = static_cast<int64_t>(weights.size()) / kCellEdges;
  Plans result;
  result.architectures = selection.size(0);
  for (int64_t a = 0; a < result.architectures; ++a) {
    CellPlan plan{};
    for (int e = 0; e < kCellEdges; ++e) {
      const int64_t code = values[(a * kCellEdges + e) * 2];
      const int64_t row = values[(a * kCellEdges + e) * 2 + 1];
      const int64_t sets = weights[e * per_edge].size(0);
      const std::string argument = "selection[" + std::to_string(e) + "]";
      CWK_CHECK(code >= 0 && code <= 4, name, argument, "a code in [0, 5)", code);
      CWK_CHECK(row >= 0 && row < sets, name, argument,
                "a row in [0, " + std::to_string(sets) + ")", row);
      plan.edges[e].code = static_cast<CellCode>(code);
      plan.edges[e].row = row;
    }
    result.kept = complete_plan(plan, per_edge, result.kept);
    result.plans.push_back(plan);
  }
  return result;
}

// Of what nb201_plan gives. All sizes are those of the most that its architectures may need.
Plans plans_by_pointer(const char* name, const Tensor& plan, const Tensor& images) {
  CWK_CHECK(plan.dim() == 2 && plan.size(1) == kCellPlanInts && plan.is_contiguous(), name,
            "selection", "what nb201_plan gives", describe(plan));
  CWK_CHECK(plan.device() == images.device(), name, "selection", "a plan on the input's device",
            "one on another device");
  Plans result;
  result.planned = plan.const_data_ptr();
  result.architectures = plan.size(0);
  result.kept = result.architectures * kCellKept;
  return result;
}

Plans make_plans(const char* name, const Tensor& selection, const Tensors& weights,
                 const Tensor& images) {
  return selection.scalar_type() == ScalarType::Int ? plans_by_pointer(name, selection, images)
                                                    : plans_by_value(name, selection, weights);
}

void check(const char* name, const Tensor& images, const Tensor& selection, const Tensors& weights,
           const Tensors& running_mean, const Tensors& running_var, bool training) {
  check_activations(name, "input", images);
  const auto dtype = parameter_type(images);
  CWK_CHECK(images.dim() == 5 && (images.size(0) == 1 || images.size(0) == selection.size(0)), name,
            "input", "[A or 1, N, C, H, W]", describe(images));
  CWK_CHECK(weights.size() == 12 || weights.size() == 18, name, "weights", "12 or 18 banks",
            weights.size());
  const size_t running = training ? 0 : 12, per_edge = weights.size() / kCellEdges;
  CWK_CHECK(
      (training || running_mean.size() == running) && (training || running_var.size() == running),
      name, "running_mean, running_var", running, running_mean.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const int64_t c = images.size(2), size = i % per_edge == 1 ? 3 : 1;
    const Tensor& bank = weights[i];
    CWK_CHECK(bank.dim() == 5 && bank.is_contiguous() && bank.size(1) == c && bank.size(2) == c &&
                  bank.size(3) == size && bank.size(4) == size &&
                  bank.size(0) == weights[i / per_edge * per_edge].size(0) &&
                  bank.scalar_type() == dtype,
              name, entry("weights", i), "a contiguous bank [S, C, C, R, R]", describe(bank));
    CWK_CHECK(bank.device() == images.device(), name, entry("weights", i),
              "a tensor on the input's device", "one on another device");
  }
  for (const Tensors* group : {&running_mean, &running_var}) {
    for (size_t i = 0; !training && i < group->size(); ++i) {
      const Tensor& own = (*group)[i];
      CWK_CHECK(own.is_contiguous() && own.scalar_type() == dtype &&
                    own.numel() == weights[i / 2 * per_edge].size(0) * images.size(2),
                name, "running statistics [" + std::to_string(i) + "]", "contiguous [S, C]",
                describe(own));
      CWK_CHECK(own.device() == images.device(), name,
                "running statistics [" + std::to_string(i) + "]", "a tensor on the input's device",
                "one on another device");
    }
  }
}

NB201CellParams prepare(const Tensor& images, const Plans& plans, const Tensors& weights,
                        const Tensors& running_mean, const Tensors& running_var, bool training,
                        bool count_include_pad, double eps, bool winograd) {
  NB201CellParams params{};
  params.input = images.const_data_ptr();
  params.plans = plans.plans.data();
  params.planned = plans.planned;
  const size_t per_edge = weights.size() / kCellEdges;
  params.banks_per_edge = static_cast<int64_t>(per_edge);
  for (size_t i = 0; i < weights.size(); ++i) {
    params.weights[i / per_edge][i % per_edge] = weights[i].const_data_ptr();
  }
  for (size_t i = 0; !training && i < running_mean.size(); ++i) {
    params.running_mean[i / 2][i % 2] = running_mean[i].const_data_ptr();
    params.running_var[i / 2][i % 2] = running_var[i].const_data_ptr();
  }
  params.architectures = plans.architectures;
  params.shared = images.size(0) == 1;
  params.images = images.size(1);
  params.channels = images.size(2);
  params.height = images.size(3);
  params.width = images.size(4);
  params.eps = eps;
  params.training = training;
  params.count_include_pad = count_include_pad;
  params.winograd = winograd;
  params.double_precision = images.scalar_type() == ScalarType::Double;
  params.bf16_images = is_bf16(images);
  return params;
}

Tensor images_like(const Tensor& images, int64_t count) {
  return new_images(images,
                    {count, images.size(1), images.size(3), images.size(4), images.size(2)});
}

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Backward = std::tuple<Tensor, Tensors, Tensors>;

// A pass on either device: run(params, images) calls the kernels.
template <class Run>
Forward forward(const Run& run, const Tensor& input, const Tensor& selection,
                const Tensors& weights, const Tensors& running_mean, const Tensors& running_var,
                bool training, bool count_include_pad, double eps, bool winograd, bool keep) {
  check("nb201_cell", input, selection, weights, running_mean, running_var, training);
  const Plans plans = make_plans("nb201_cell", selection, weights, input);
  const Tensor images = dense_images(input);
  NB201CellParams params = prepare(images, plans, weights, running_mean, running_var, training,
                                   count_include_pad, eps, winograd);
  const int64_t a = params.architectures;
  Tensor output = images_like(images, a);
  Tensor kept = images_like(images, keep ? plans.kept : 0);
  const auto dtype = parameter_type(images);
  Tensor statistics = torch::stable::new_zeros(
      images, std::vector<int64_t>{a, kCellEdges, 2, params.channels}, dtype);
  Tensor own = torch::stable::new_zeros(images, std::vector<int64_t>{a, 2, params.channels}, dtype);
  if (output.numel() == 0) return {output, statistics, own, kept};
  params.output = output.mutable_data_ptr();
  params.statistics = statistics.mutable_data_ptr();
  params.output_statistics = own.mutable_data_ptr();
  params.kept = keep ? kept.mutable_data_ptr() : nullptr;
  run(params, images);
  return {output, statistics, own, kept};
}

// The rows of each bank that the architectures read, sorted, and which of them each one writes.
std::vector<std::vector<int64_t>> place_gradients(Plans& plans, size_t banks) {
  const size_t per_edge = banks / kCellEdges;
  std::vector<std::vector<int64_t>> rows(banks);
  const auto each = [&](const auto& f) {
    for (CellPlan& plan : plans.plans) {
      for (int e = 0; e < kCellEdges; ++e) {
        CellEdge& edge = plan.edges[e];
        if (edge.bank >= 0) f(edge, rows[e * per_edge + edge.bank]);
      }
    }
  };
  each([](const CellEdge& edge, std::vector<int64_t>& own) { own.push_back(edge.row); });
  for (std::vector<int64_t>& own : rows) {
    std::sort(own.begin(), own.end());
    own.erase(std::unique(own.begin(), own.end()), own.end());
  }
  std::vector<std::vector<bool>> written(banks);
  for (size_t i = 0; i < banks; ++i) written[i].resize(rows[i].size());
  each([&](CellEdge& edge, std::vector<int64_t>& own) {
    edge.slot = std::lower_bound(own.begin(), own.end(), edge.row) - own.begin();
    std::vector<bool>& marks = written[&own - rows.data()];
    edge.again = marks[edge.slot];
    marks[edge.slot] = true;
  });
  return rows;
}

// The gradients of the banks, new and to be written by the kernels.
struct Gradients {
  Tensors rows, values;
};

void add_values(Gradients& gradients, NB201CellParams& params, const Tensor& images,
                const Tensor& bank, int64_t count) {
  const size_t i = gradients.values.size(), per_edge = static_cast<size_t>(params.banks_per_edge);
  const int64_t c = images.size(2), size = bank.size(3);
  Tensor value = torch::stable::new_empty(bank, std::vector<int64_t>{count, c, c, size, size});
  params.grad_weights[i / per_edge][i % per_edge] = count ? value.mutable_data_ptr() : nullptr;
  gradients.values.push_back(value);
}

// Exactly the rows that are read, none if none is needed.
Gradients gradients_by_value(Plans& plans, NB201CellParams& params, const Tensor& images,
                             const Tensor& selection, const Tensors& weights) {
  Gradients gradients;
  const auto all_rows = place_gradients(plans, weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const int64_t count = params.need_weights ? static_cast<int64_t>(all_rows[i].size()) : 0;
    Tensor own = torch::stable::new_empty(selection, std::vector<int64_t>{count});
    std::copy_n(all_rows[i].begin(), count, static_cast<int64_t*>(own.mutable_data_ptr()));
    gradients.rows.push_back(own);
    add_values(gradients, params, images, weights[i], count);
  }
  return gradients;
}

// A slot for each architecture. The rows of all banks are one tensor [banks, A]: several that are
// views of one another could not leave an operation.
Gradients gradients_by_pointer(NB201CellParams& params, const Tensor& images,
                               const Tensors& weights) {
  Gradients gradients;
  const int64_t count = params.need_weights ? params.architectures : 0;
  Tensor rows = torch::stable::new_empty(
      images, std::vector<int64_t>{static_cast<int64_t>(weights.size()), count}, ScalarType::Long);
  params.rows = count ? static_cast<int64_t*>(rows.mutable_data_ptr()) : nullptr;
  gradients.rows.push_back(rows);
  for (const Tensor& bank : weights) add_values(gradients, params, images, bank, count);
  return gradients;
}

template <class Run>
Backward backward(const Run& run, const Tensor& grad, const Tensor& input, const Tensor& selection,
                  const Tensors& weights, const Tensors& running_mean, const Tensors& running_var,
                  const Tensor& statistics, const Tensor& kept, bool training,
                  bool count_include_pad, double eps, bool winograd, bool need_weights) {
  const char* name = "nb201_cell_backward";
  check(name, input, selection, weights, running_mean, running_var, training);
  Plans plans = make_plans(name, selection, weights, input);
  const Tensor images = dense_images(input), grad_output = dense_images(grad);
  const int64_t a = plans.architectures;
  CWK_CHECK(grad.dim() == 5 && grad.size(0) == a && grad.size(1) == images.size(1) &&
                grad.size(2) == images.size(2) && grad.size(3) == images.size(3) &&
                grad.size(4) == images.size(4) && grad.scalar_type() == images.scalar_type(),
            name, "grad", "the shape and dtype of nb201_cell's output", describe(grad));
  CWK_CHECK(kept.dim() == 5 && kept.size(0) == plans.kept &&
                channels_behind(kept).is_contiguous() && kept.scalar_type() == images.scalar_type(),
            name, "kept", "what nb201_cell kept", describe(kept));
  CWK_CHECK(statistics.is_contiguous() && statistics.numel() == a * 12 * images.size(2) &&
                statistics.scalar_type() == parameter_type(images),
            name, "statistics", "those of nb201_cell", describe(statistics));
  for (const Tensor* own : {&grad, &statistics, &kept}) {
    CWK_CHECK(own->device() == images.device(), name, "grad, statistics, kept",
              "tensors on the input's device", "one on another device");
  }
  NB201CellParams params = prepare(images, plans, weights, running_mean, running_var, training,
                                   count_include_pad, eps, winograd);
  params.need_weights = need_weights;
  const Gradients gradients = plans.planned
                                  ? gradients_by_pointer(params, images, weights)
                                  : gradients_by_value(plans, params, images, selection, weights);
  Tensor grad_input = images_like(images, images.size(0));
  if (images.numel() == 0) {
    for (Tensor value : gradients.values) torch::stable::zero_(value);
    if (plans.planned) {
      Tensor none = gradients.rows[0];
      torch::stable::fill_(none, -1);
    }
    return {grad_input, gradients.rows, gradients.values};
  }
  params.grad_output = grad_output.const_data_ptr();
  params.grad_input = grad_input.mutable_data_ptr();
  params.statistics = const_cast<void*>(statistics.const_data_ptr());
  params.kept = const_cast<void*>(kept.const_data_ptr());
  run(params, images);
  return {grad_input, gradients.rows, gradients.values};
}

void check_on_host(const char* name, const Tensor& input, const Tensor& selection) {
  check_cpu_activations(name, "input", input);
  CWK_CHECK(selection.scalar_type() != ScalarType::Int, name, "selection",
            "int64 [A, 6, 2] for tensors of the CPU, whose kernels read no plan", "int32");
}

Forward nb201_cell_cpu(const Tensor& input, const Tensor& selection, const Tensors& weights,
                       const Tensors& running_mean, const Tensors& running_var, bool training,
                       bool count_include_pad, double eps, bool winograd, bool /*dense_grad*/,
                       bool keep) {
  check_on_host("nb201_cell", input, selection);
  const auto run = [](NB201CellParams& params, const Tensor& /*images*/) {
    params.parallel = cpu_parallel();
    CWK_RUN_CPU(nb201_cell, params);
  };
  return forward(run, input, selection, weights, running_mean, running_var, training,
                 count_include_pad, eps, winograd, keep);
}

Backward nb201_cell_backward_cpu(const Tensor& grad, const Tensor& input, const Tensor& selection,
                                 const Tensors& weights, const Tensors& running_mean,
                                 const Tensors& running_var, const Tensor& statistics,
                                 const Tensor& kept, bool training, bool count_include_pad,
                                 double eps, bool winograd, bool need_weights) {
  check_on_host("nb201_cell_backward", input, selection);
  const auto run = [](NB201CellParams& params, const Tensor& /*images*/) {
    params.parallel = cpu_parallel();
    CWK_RUN_CPU(nb201_cell_backward, params);
  };
  return backward(run, grad, input, selection, weights, running_mean, running_var, statistics, kept,
                  training, count_include_pad, eps, winograd, need_weights);
}

#if CWK_WITH_CUDA
// What the kernels count with: 31 bits for pixels, and coefficients of all channels in shared
// memory.
void check_sizes(const char* name, const NB201CellParams& params) {
  constexpr int64_t kMostPixels = (int64_t{1} << 31) - 1, kMostChannels = 1536;
  const int64_t pixels = params.images * params.height * params.width;
  CWK_CHECK(pixels <= kMostPixels, name, "input", "fewer than 2^31 pixels", pixels);
  CWK_CHECK(params.channels <= kMostChannels, name, "input", "at most 1536 channels on the GPU",
            params.channels);
}

Forward nb201_cell_gpu(const Tensor& input, const Tensor& selection, const Tensors& weights,
                       const Tensors& running_mean, const Tensors& running_var, bool training,
                       bool count_include_pad, double eps, bool winograd, bool /*dense_grad*/,
                       bool keep) {
  const GpuCall call("nb201_cell", input);
  const auto run = [&call](NB201CellParams& params, const Tensor& images) {
    check_sizes("nb201_cell", params);
    CWK_RUN_GPU(call, nb201_cell, params, images);
  };
  return forward(run, input, selection, weights, running_mean, running_var, training,
                 count_include_pad, eps, winograd, keep);
}

Backward nb201_cell_backward_gpu(const Tensor& grad, const Tensor& input, const Tensor& selection,
                                 const Tensors& weights, const Tensors& running_mean,
                                 const Tensors& running_var, const Tensor& statistics,
                                 const Tensor& kept, bool training, bool count_include_pad,
                                 double eps, bool winograd, bool need_weights) {
  const GpuCall call("nb201_cell_backward", input);
  const auto run = [&call](NB201CellParams& params, const Tensor& images) {
    check_sizes("nb201_cell_backward", params);
    CWK_RUN_GPU(call, nb201_cell_backward, params, images);
  };
  return backward(run, grad, input, selection, weights, running_mean, running_var, statistics, kept,
                  training, count_include_pad, eps, winograd, need_weights);
}
#endif

}  // namespace
}  // namespace cwkernels

CWK_SCHEMAS(m) {
  m.def(
      "nb201_cell(Tensor input, Tensor selection, Tensor[] weights, Tensor[] running_mean, "
      "Tensor[] running_var, bool training, bool count_include_pad, float eps, bool winograd, "
      "bool dense_grad, bool keep) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "nb201_cell_backward(Tensor grad, Tensor input, Tensor selection, Tensor[] weights, "
      "Tensor[] running_mean, Tensor[] running_var, Tensor statistics, Tensor kept, bool training, "
      "bool count_include_pad, float eps, bool winograd, bool need_weights) -> (Tensor, Tensor[], "
      "Tensor[])");
}

CWK_CPU_FUNCTIONS(m) {
  m.impl("nb201_cell", TORCH_BOX(&cwkernels::nb201_cell_cpu));
  m.impl("nb201_cell_backward", TORCH_BOX(&cwkernels::nb201_cell_backward_cpu));
}

#if CWK_WITH_CUDA
CWK_GPU_FUNCTIONS(m) {
  m.impl("nb201_cell", TORCH_BOX(&cwkernels::nb201_cell_gpu));
  m.impl("nb201_cell_backward", TORCH_BOX(&cwkernels::nb201_cell_backward_gpu));
}
#endif
