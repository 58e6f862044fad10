#include "sgd_slots.h"

#include <limits>
#include <vector>

#include "../binding/registration.h"
#include "../binding/sgd_item.h"
#include "../binding/stream.h"

#if CWK_WITH_CUDA
namespace cwkernels {
namespace {

using torch::headeronly::ScalarType;
using Tensors = std::vector<Tensor>;
using Integers = std::vector<int64_t>;
using Numbers = SgdGroups::Numbers;

constexpr const char* kName = "sgd_slots";

void check_rows(size_t i, const SgdItem& item) {
  const Tensor& rows = item.rows;
  CWK_CHECK(rows.scalar_type() == ScalarType::Long &&
                (item.whole || (rows.device() == item.weight.device() &&
                                (rows.dim() == 1 || (rows.dim() == 2 && rows.size(0) == 1)))),
            kName, entry("rows", i), "int64 [U] on the device of the weights",
            dtype_name(rows) + (" " + describe(rows)));
}

// What the parameters of a launch have room for.
void check_room(size_t i, const SgdItem& item) {
  constexpr int64_t kMostSlots = std::numeric_limits<uint16_t>::max();
  constexpr int64_t kMostElements = int64_t{1} << 37;  // 2^27 blocks, and one more a slot
  const int64_t slots = item.rows.numel();
  CWK_CHECK(item.sets() <= kMostSlots && slots <= kMostSlots &&
                item.row_size() <= std::numeric_limits<int32_t>::max() &&
                item.row_size() * slots <= kMostElements,
            kName, entry("weights", i),
            "at most 65,535 rows and slots, of less than 2^31 elements, 2^37 in all slots",
            describe(item.weight));
}

// None, or one for each group.
void check_lr(const Tensors& lr, size_t groups, const Tensor& first) {
  if (!lr.empty()) check_length(kName, "lr_on_device", lr.size(), "sizes", groups);
  for (size_t g = 0; g < lr.size(); ++g) {
    CWK_CHECK(lr[g].scalar_type() == ScalarType::Double && lr[g].numel() == 1 &&
                  lr[g].device() == first.device(),
              kName, entry("lr_on_device", g), "one float64 on the device of the weights",
              dtype_name(lr[g]) + (" " + describe(lr[g])));
  }
}

SgdSlotsTarget target_of(const SgdItem& item, SgdMemory& memory) {
  SgdSlotsTarget target{};
  target.double_precision = item.double_precision();
  target.shared_buffer = item.shared_buffer();
  target.sets = item.sets();
  target.row_size = item.row_size();
  target.slots = item.whole ? 1 : item.rows.numel();
  target.entries = item.entries();
  target.rows = item.whole ? nullptr : item.row_values();
  memory.point(item, target);
  return target;
}

void sgd_slots_gpu(Tensors weights, Tensors momenta, Tensors grads, Tensors rows, Integers sizes,
                   Numbers lr, Tensors lr_on_device, Numbers momentum, Numbers weight_decay) {
  CWK_CHECK(!weights.empty(), kName, "weights", "at least one", "none");
  const GpuCall call(kName, weights[0]);
  check_length(kName, "momentum_buffers", momenta.size(), "weights", weights.size());
  check_length(kName, "grads", grads.size(), "weights", weights.size());
  check_length(kName, "rows", rows.size(), "weights", weights.size());
  const SgdGroups groups(kName, sizes, lr, momentum, weight_decay, weights.size());
  check_lr(lr_on_device, sizes.size(), weights[0]);
  for (Tensor& own : rows) {
    if (!own.is_contiguous()) own = torch::stable::contiguous(own);
  }
  std::vector<SgdItem> items;
  items.reserve(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    items.push_back({weights[i], momenta[i], grads[i], rows[i], rows[i].dim() == 0});
    check_item(kName, i, items[i], weights[0]);
    check_rows(i, items[i]);
    check_room(i, items[i]);
  }
  SgdMemory memory;
  std::vector<SgdSlotsTarget> targets;
  targets.reserve(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    targets.push_back(target_of(items[i], memory));
    targets[i].options = groups.options(i);
    if (!lr_on_device.empty()) {
      targets[i].lr_on_device =
          static_cast<const double*>(lr_on_device[groups.of(i)].const_data_ptr());
    }
  }
  SgdSlotsParams params{};
  params.targets = targets.data();
  params.target_count = static_cast<int64_t>(targets.size());
  call.check(sgd_slots_cuda(params, call.stream()));
  memory.write_back();
}

}  // namespace
}  // namespace cwkernels
#endif

CWK_SCHEMAS(m) {
  m.def(
      "sgd_slots(Tensor(a!)[] weights, Tensor(b!)[] momentum_buffers, Tensor[] grads, "
      "Tensor[] rows, int[] sizes, float[] lr, Tensor[] lr_on_device, float[] momentum, "
      "float[] weight_decay) -> ()");
}

#if CWK_WITH_CUDA
CWK_GPU_FUNCTIONS(m) { m.impl("sgd_slots", TORCH_BOX(&cwkernels::sgd_slots_gpu)); }
#endif
