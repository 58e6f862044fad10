#pragma once
#include <torch/csrc/stable/ops.h>

#include <string>
#include <vector>

#include "../ops/sgd.h"
#include "checks.h"

// One of the tensors that sgd and sgd_slots move: what they check of it, and where it lies; and the
// groups in which tensors come.
namespace cwkernels {

// Whether two tensors agree in sizes from dimension `first` on.
inline bool same_sizes(const Tensor& one, const Tensor& other, int64_t first = 0) {
  if (one.dim() != other.dim()) return false;
  for (int64_t d = first; d < one.dim(); ++d) {
    if (one.size(d) != other.size(d)) return false;
  }
  return true;
}

// One tensor to move, of which `rows` says which rows; or all of it, as the one row that there is.
struct SgdItem {
  const Tensor &weight, &momentum, &grad, &rows;
  bool whole;

  int64_t sets() const { return whole ? 1 : weight.size(0); }
  int64_t entries() const { return whole ? 1 : grad.size(0); }
  int64_t row_size() const { return sets() == 0 ? 0 : weight.numel() / sets(); }
  bool shared_buffer() const { return !whole && momentum.size(0) != weight.size(0); }
  bool double_precision() const {
    return weight.scalar_type() == torch::headeronly::ScalarType::Double;
  }
  const int64_t* row_values() const { return static_cast<const int64_t*>(rows.const_data_ptr()); }
};

inline void check_like(const char* operation, const char* list, size_t i, const Tensor& tensor,
                       const Tensor& weight, bool fits) {
  CWK_CHECK(fits, operation, entry(list, i), "rows of the weight's shape " + describe(weight),
            describe(tensor));
  CWK_CHECK(tensor.scalar_type() == weight.scalar_type() && tensor.device() == weight.device(),
            operation, entry(list, i),
            dtype_name(weight) + std::string(" on ").append(device_name(weight)),
            dtype_name(tensor));
}

// All but the values of `rows`, which may not be known here.
inline void check_item(const char* operation, size_t i, const SgdItem& item, const Tensor& first) {
  using torch::headeronly::ScalarType;
  const Tensor &weight = item.weight, &momentum = item.momentum;
  const auto dtype = weight.scalar_type();
  CWK_CHECK(weight.device() == first.device() &&
                (dtype == ScalarType::Float || dtype == ScalarType::Double),
            operation, entry("weights", i),
            std::string("float32 or float64 on ") + device_name(first), dtype_name(weight));
  check_like(operation, "grads", i, item.grad, weight,
             item.whole ? same_sizes(item.grad, weight)
                        : (weight.dim() > 0 && same_sizes(item.grad, weight, 1) &&
                           item.grad.size(0) <= item.rows.numel()));
  check_like(operation, "momentum_buffers", i, momentum, weight,
             same_sizes(momentum, weight) ||
                 (!item.whole && same_sizes(momentum, weight, 1) && momentum.size(0) == 1));
}

// Whether all elements lie side by side, in whatever order of dimensions.
inline bool is_dense(const Tensor& tensor) {
  int64_t expected = 1;
  for (int64_t found = 0; found < tensor.dim();) {
    const int64_t before = found;
    for (int64_t d = 0; d < tensor.dim(); ++d) {
      if (tensor.size(d) > 1 && tensor.stride(d) == expected) {
        expected *= tensor.size(d);
        ++found;
      }
    }
    if (found == before) break;
  }
  return expected == tensor.numel();
}

inline bool same_strides(const Tensor& one, const Tensor& other) {
  for (int64_t d = 0; d < one.dim(); ++d) {
    if (one.size(d) > 1 && one.stride(d) != other.stride(d)) return false;
  }
  return true;
}

// Whether element i of one lies beside element i + 1 as it does in the others.
inline bool lies_alike(const SgdItem& item) {
  if (item.weight.is_contiguous() && item.momentum.is_contiguous() && item.grad.is_contiguous()) {
    return true;
  }
  return item.whole && is_dense(item.weight) && same_strides(item.weight, item.momentum) &&
         same_strides(item.weight, item.grad);
}

// Options of groups of tensors, which lie one behind the other in the lists of an operation.
class SgdGroups {
 public:
  using Numbers = std::vector<double>;

  SgdGroups(const char* operation, const std::vector<int64_t>& sizes, const Numbers& lr,
            const Numbers& momentum, const Numbers& weight_decay, size_t tensors) {
    check_length(operation, "lr", lr.size(), "sizes", sizes.size());
    check_length(operation, "momentum", momentum.size(), "sizes", sizes.size());
    check_length(operation, "weight_decay", weight_decay.size(), "sizes", sizes.size());
    for (size_t g = 0; g < sizes.size(); ++g) {
      const auto left = static_cast<int64_t>(tensors - of_tensor_.size());
      CWK_CHECK(sizes[g] >= 0 && sizes[g] <= left, operation, entry("sizes", g),
                "at most the " + std::to_string(left) + " tensors that are left", sizes[g]);
      options_.push_back({lr[g], momentum[g], weight_decay[g]});
      of_tensor_.insert(of_tensor_.end(), static_cast<size_t>(sizes[g]), g);
    }
    CWK_CHECK(of_tensor_.size() == tensors, operation, "sizes",
              "all " + std::to_string(tensors) + " tensors", of_tensor_.size());
  }

  size_t of(size_t i) const { return of_tensor_[i]; }
  const SgdOptions& options(size_t i) const { return options_[of(i)]; }

 private:
  std::vector<SgdOptions> options_;
  std::vector<size_t> of_tensor_;
};

// Where the kernel finds the items. What lies otherwise, a parameter in another memory format than
// its gradient, is moved as a copy.
class SgdMemory {
 public:
  // Points a target's weight, momentum and gradient to those of an item, which outlives this.
  template <class Target>
  void point(const SgdItem& item, Target& target) {
    const bool alike = lies_alike(item);
    if (!alike) {
      copies_.push_back({item.weight, item.momentum, torch::stable::contiguous(item.weight),
                         torch::stable::contiguous(item.momentum),
                         torch::stable::contiguous(item.grad)});
    }
    const Tensor& weight = alike ? item.weight : copies_.back().weight;
    const Tensor& momentum = alike ? item.momentum : copies_.back().momentum;
    const Tensor& grad = alike ? item.grad : copies_.back().grad;
    target.weight = weight.mutable_data_ptr();
    target.momentum = momentum.mutable_data_ptr();
    target.grad = grad.const_data_ptr();
  }

  // What was moved as a copy goes where it lies.
  void write_back() {
    for (Copy& copy : copies_) {
      torch::stable::copy_(copy.weight_of, copy.weight);
      torch::stable::copy_(copy.momentum_of, copy.momentum);
    }
  }

 private:
  struct Copy {
    Tensor weight_of, momentum_of, weight, momentum, grad;
  };
  std::vector<Copy> copies_;
};

}  // namespace cwkernels
