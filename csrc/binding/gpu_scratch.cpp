#include "gpu_scratch.h"

#if CWK_WITH_CUDA
#include <algorithm>
#include <mutex>
#include <utility>

#include "stream.h"

// Tickets are zeros before and after each call, so all calls on a stream can share them: they are
// cleared once instead of once a call, which would be a launch more in each. Calls on a stream
// follow each other; those on two streams may not, and each has its own. So has each capture of a
// CUDA graph, whose nodes may run when the stream that they were captured on does other work; the
// clearing is the first of them.
namespace cwkernels {
namespace {

// 16 KB: more than any call of the networks takes.
constexpr int64_t kLeastTickets = 4096;

// Whose calls follow each other.
struct Queue {
  int32_t device;
  void* stream;
  uint64_t capture;  // 0: none

  bool operator==(const Queue&) const = default;
};

struct Pool {
  std::mutex mutex;
  std::vector<std::pair<Queue, Tensor>> zeros;
};

// Never destroyed: at the end of the process torch's allocator may be gone before it.
Pool& pool() {
  static Pool* const only = new Pool;
  return *only;
}

Tensor new_zeros(const Tensor& like, int64_t count) {
  return torch::stable::new_zeros(like, std::vector<int64_t>{count},
                                  torch::headeronly::ScalarType::Int);
}

}  // namespace

Tensor ticket_zeros(const Tensor& like, int64_t count) {
  if (count == 0) return new_zeros(like, 0);
  const int32_t device = like.get_device_index();
  void* stream = current_stream(device);
  const Queue queue{device, stream, capture_of(stream)};
  Pool& all = pool();
  const std::lock_guard<std::mutex> lock(all.mutex);
  for (const auto& [owner, zeros] : all.zeros) {
    if (owner == queue && zeros.numel() >= count) return zeros;
  }
  const Tensor zeros = new_zeros(like, std::max(count, kLeastTickets));
  // Too few ones; and those of captures that are over, which stay in the memory of their graphs.
  std::erase_if(all.zeros, [&](const auto& entry) {
    const Queue& owner = entry.first;
    return owner == queue || (owner.capture != 0 && owner.capture != queue.capture);
  });
  all.zeros.emplace_back(queue, zeros);
  return zeros;
}

}  // namespace cwkernels
#endif
