#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <string>

// Every check names the operation, the argument, what was wanted and what was got, and runs before
// anything is allocated or written.
namespace cwkernels {

using torch::stable::Tensor;

inline std::string describe(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    text += (d ? ", " : "") + std::to_string(tensor.size(d));
  }
  return text + "]";
}

#define CWK_CHECK(condition, operation, argument, wanted, got) \
  STD_TORCH_CHECK(condition, operation, ": ", argument, ": wanted ", wanted, ", got ", got)

// The dtype's own name: headeronly has toString, but not in every supported release.
inline const char* dtype_name(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Long: return "int64";
    case ScalarType::Int: return "int32";
    case ScalarType::Bool: return "bool";
    case ScalarType::Byte: return "uint8";
    default: return "another dtype";
  }
}
inline const char* dtype_name(const Tensor& tensor) { return dtype_name(tensor.scalar_type()); }

// Activations in bfloat16 have weights, scales, shifts, statistics and the gradients of these in
// float32. There are kernels for them on a GPU only.
inline bool is_bf16(const Tensor& tensor) {
  return tensor.scalar_type() == torch::headeronly::ScalarType::BFloat16;
}
inline torch::headeronly::ScalarType parameter_type(const Tensor& activations) {
  return is_bf16(activations) ? torch::headeronly::ScalarType::Float : activations.scalar_type();
}
inline void check_activations(const char* operation, const char* argument, const Tensor& tensor) {
  const auto dtype = parameter_type(tensor);
  CWK_CHECK(dtype == torch::headeronly::ScalarType::Float ||
                dtype == torch::headeronly::ScalarType::Double,
            operation, argument, "float32, float64 or bfloat16", dtype_name(tensor));
}
inline void check_cpu_activations(const char* operation, const char* argument,
                                  const Tensor& tensor) {
  CWK_CHECK(!is_bf16(tensor), operation, argument, "float32 or float64 on the CPU",
            "bfloat16, whose kernels need a GPU");
}

inline const char* device_name(const Tensor& tensor) {
  return tensor.is_cpu() ? "the CPU" : "the GPU";
}

// An argument that is an entry of a list.
inline std::string entry(const char* list, size_t i) {
  return std::string(list) + "[" + std::to_string(i) + "]";
}

inline void check_length(const char* operation, const char* list, size_t length, const char* like,
                         size_t wanted) {
  CWK_CHECK(length == wanted, operation, list, std::string("as many entries as ") + like, length);
}

inline void check_same_device(const char* operation, const char* argument, const Tensor& tensor,
                              const Tensor& like) {
  CWK_CHECK(tensor.device() == like.device(), operation, argument,
            "a tensor on the device of the first argument", "one on another device");
}

// An int64 vector of rows, each in [0, num_rows): checked here for the CPU, where it can be read.
inline void check_rows(const char* operation, const Tensor& rows, int64_t num_rows) {
  CWK_CHECK(rows.dim() == 1 && rows.scalar_type() == torch::headeronly::ScalarType::Long, operation,
            "rows", "int64 [A]", dtype_name(rows) + (" " + describe(rows)));
  if (!rows.is_cpu()) return;
  CWK_CHECK(rows.is_contiguous(), operation, "rows", "a contiguous tensor", "a strided one");
  const int64_t* values = static_cast<const int64_t*>(rows.const_data_ptr());
  for (int64_t i = 0; i < rows.numel(); ++i) {
    CWK_CHECK(values[i] >= 0 && values[i] < num_rows, operation,
              entry("rows", static_cast<size_t>(i)),
              "a row in [0, " + std::to_string(num_rows) + ")", values[i]);
  }
}

}  // namespace cwkernels
