#include "workspace.h"

#include <dlfcn.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "arena.h"

namespace cwkernels {
namespace {

using torch::stable::Tensor;

struct Piece {
  void* data;
  size_t bytes;
};

// The pieces that no call uses now. A call takes the smallest that fits, else a new one in place of
// the largest, which is too small: the pool holds one piece for each call that ran at a time.
struct Pool {
  std::mutex mutex;
  std::vector<Piece> idle;
  int64_t bytes = 0;  // of all pieces, used ones too
  std::atomic<bool> poisoned{false};
};

// Never destroyed: an autograd thread may outlive main.
Pool& pool() {
  static Pool& instance = *new Pool;
  return instance;
}

// Of tensors; as long-lived as the pool.
Arena& arena() {
  static Arena& instance = *new Arena;
  return instance;
}

void release(Piece piece) {
  pool().bytes -= static_cast<int64_t>(piece.bytes);
  std::free(piece.data);
}

int64_t workspace_bytes() {
  const std::lock_guard<std::mutex> lock(pool().mutex);
  return pool().bytes + static_cast<int64_t>(arena().idle_bytes());
}

void release_workspace() {
  const std::lock_guard<std::mutex> lock(pool().mutex);
  for (const Piece& piece : pool().idle) release(piece);
  pool().idle.clear();
  arena().release();
}

// Scratch begins as NaN, so that what is read before it is written shows. For tests.
void poison_workspace(bool poisoned) { pool().poisoned = poisoned; }

// Smaller tensors stay with malloc, which keeps what it needs for them.
constexpr int64_t kLeastPooled = 256 * 1024;

// torch 2.11's tensor around memory that is not its own, with what to do when it goes. Looked up
// where it is needed: linking against it would lock out torch 2.10.
using FromBlob = AOTITorchError (*)(void* data, int64_t dims, const int64_t* sizes,
                                    const int64_t* strides, int64_t storage_offset, int32_t dtype,
                                    int32_t device_type, int32_t device_index,
                                    AtenTensorHandle* result, int32_t layout,
                                    const uint8_t* metadata, int64_t metadata_size,
                                    void (*deleter)(void* data, void* context), void* context);

FromBlob from_blob() {
  static const auto function = reinterpret_cast<FromBlob>(dlsym(RTLD_DEFAULT, "torch_from_blob"));
  return function;
}

void give_back(void* data, void* /*context*/) { arena().give(data); }

Tensor pooled_tensor(const Tensor& like, const std::vector<int64_t>& sizes, int64_t bytes) {
  void* const data = arena().take(static_cast<size_t>(bytes));
  STD_TORCH_CHECK(data, "cwkernels: no memory for a tensor of ", bytes, " bytes");
  if (pool().poisoned) std::memset(data, 0xff, static_cast<size_t>(bytes));
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size() - 1; d-- > 0;) strides[d] = strides[d + 1] * sizes[d + 1];
  int32_t dtype = 0;
  aoti_torch_get_dtype(like.get(), &dtype);
  AtenTensorHandle result = nullptr;
  const AOTITorchError error =
      from_blob()(data, static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0, dtype,
                  aoti_torch_device_type_cpu(), -1, &result, aoti_torch_layout_strided(), nullptr,
                  0, give_back, nullptr);
  if (error != AOTI_TORCH_SUCCESS) arena().give(data);
  STD_TORCH_CHECK(error == AOTI_TORCH_SUCCESS, "cwkernels: torch_from_blob failed with error ",
                  error);
  return Tensor(result);
}

}  // namespace

Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& sizes) {
  int64_t bytes = static_cast<int64_t>(like.element_size());
  for (const int64_t size : sizes) bytes *= size;
  if (like.is_cpu() && bytes >= kLeastPooled && from_blob()) {
    return pooled_tensor(like, sizes, bytes);
  }
  return torch::stable::new_empty(like, sizes);
}

Workspace::Workspace(int64_t bytes) : data_(nullptr), bytes_((bytes + 63) / 64 * 64) {
  if (bytes_ == 0) return;
  {
    const std::lock_guard<std::mutex> lock(pool().mutex);
    std::vector<Piece>& idle = pool().idle;
    size_t best = idle.size(), largest = 0;
    for (size_t i = 0; i < idle.size(); ++i) {
      if (idle[i].bytes > idle[largest].bytes) largest = i;
      const bool fits = idle[i].bytes >= bytes_;
      if (fits && (best == idle.size() || idle[i].bytes < idle[best].bytes)) best = i;
    }
    if (best == idle.size() && !idle.empty()) {
      release(idle[largest]);
      idle.erase(idle.begin() + static_cast<std::ptrdiff_t>(largest));
    } else if (best < idle.size()) {
      data_ = idle[best].data;
      bytes_ = idle[best].bytes;
      idle.erase(idle.begin() + static_cast<std::ptrdiff_t>(best));
    }
    if (!data_) {
      data_ = fresh_memory(&bytes_);
      STD_TORCH_CHECK(data_, "cwkernels: no memory for ", bytes_, " bytes of workspace");
      pool().bytes += static_cast<int64_t>(bytes_);
    }
  }
  if (pool().poisoned) std::memset(data_, 0xff, bytes_);
}

Workspace::~Workspace() {
  if (!data_) return;
  const std::lock_guard<std::mutex> lock(pool().mutex);
  pool().idle.push_back({data_, bytes_});
}

}  // namespace cwkernels

STABLE_TORCH_LIBRARY_FRAGMENT(cwkernels, m) {
  m.def("workspace_bytes() -> int");
  m.def("release_workspace() -> ()");
  m.def("poison_workspace(bool poisoned) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(cwkernels, CompositeExplicitAutograd, m) {
  m.impl("workspace_bytes", TORCH_BOX(&cwkernels::workspace_bytes));
  m.impl("release_workspace", TORCH_BOX(&cwkernels::release_workspace));
  m.impl("poison_workspace", TORCH_BOX(&cwkernels::poison_workspace));
}
