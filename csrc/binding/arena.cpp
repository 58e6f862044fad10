#include "arena.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdlib>

namespace cwkernels {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
// A chunk holds several blocks, so that idle ones come together; what is not touched takes no
// memory.
constexpr size_t kLeastChunk = size_t{32} << 20;

// Tensors of a power of two, end to end, would meet in the same sets of L1.
constexpr size_t kStagger = 9 * 64;

size_t rounded(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

void* fresh_memory(size_t* bytes) {
  const size_t alignment = *bytes >= kHugePage ? kHugePage : 64;
  *bytes = rounded(*bytes, alignment);
  void* const data = std::aligned_alloc(alignment, *bytes);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // Advice that is refused costs nothing.
  if (data && alignment == kHugePage) madvise(data, *bytes, MADV_HUGEPAGE);
#endif
  return data;
}

Arena::Blocks::iterator Arena::add_chunk(size_t bytes) {
  size_t size = bytes > kLeastChunk ? bytes : kLeastChunk;
  auto* data = static_cast<char*>(fresh_memory(&size));
  if (!data) return blocks_.end();
  return blocks_.insert(blocks_.end(), {data, size, false, true});
}

void* Arena::take(size_t bytes) {
  const size_t wanted = rounded(bytes, 4096) + kStagger;
  const std::lock_guard<std::mutex> lock(mutex_);
  auto best = blocks_.end();
  for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
    const bool fits = !block->used && block->bytes >= wanted;
    if (fits && (best == blocks_.end() || block->bytes < best->bytes)) best = block;
  }
  if (best == blocks_.end()) best = add_chunk(wanted);
  if (best == blocks_.end()) return nullptr;
  if (best->bytes > wanted) {
    blocks_.insert(std::next(best), {best->data + wanted, best->bytes - wanted, false, false});
    best->bytes = wanted;
  }
  best->used = true;
  return best->data;
}

void Arena::give(void* data) {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto block = blocks_.begin();
  while (block->data != data) ++block;
  block->used = false;
  const auto next = std::next(block);
  if (next != blocks_.end() && !next->used && !next->begins_chunk) {
    block->bytes += next->bytes;
    blocks_.erase(next);
  }
  if (block->begins_chunk) return;
  const auto previous = std::prev(block);
  if (!previous->used) {
    previous->bytes += block->bytes;
    blocks_.erase(block);
  }
}

size_t Arena::idle_bytes() {
  const std::lock_guard<std::mutex> lock(mutex_);
  size_t bytes = 0;
  for (const Block& block : blocks_) bytes += block.used ? 0 : block.bytes;
  return bytes;
}

void Arena::release() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto block = blocks_.begin(); block != blocks_.end();) {
    const auto next = std::next(block);
    const bool whole = block->begins_chunk && (next == blocks_.end() || next->begins_chunk);
    if (whole && !block->used) {
      std::free(block->data);
      blocks_.erase(block);
    }
    block = next;
  }
}

}  // namespace cwkernels
