#pragma once
#include <cstddef>
#include <list>
#include <mutex>

namespace cwkernels {

// New memory from malloc's heap, 64-byte aligned, `*bytes` rounded up to what it has; null if there
// is none. Where Linux has huge pages at hand, a page fault of a large piece is for 2 MB and not
// for 4 KB.
void* fresh_memory(size_t* bytes);

// Memory that is used again and again in blocks of ever other sizes: the tensors of training steps
// on random architectures. malloc gives large blocks back to the system and takes them anew, with a
// page fault for each page; here what was once taken stays until it is released. A block is the
// smallest idle one that fits, split; idle neighbours are one block again.
class Arena {
 public:
  // 64-byte aligned; null if the system has no memory.
  void* take(size_t bytes);
  // What take returned.
  void give(void* data);
  // Of all memory held, what no block in use covers.
  size_t idle_bytes();
  // Gives chunks without a block in use back to the system.
  void release();

 private:
  // One of the blocks that a chunk is split into, in the order of their addresses.
  struct Block {
    char* data;
    size_t bytes;
    bool used;
    bool begins_chunk;
  };
  using Blocks = std::list<Block>;

  Blocks::iterator add_chunk(size_t bytes);

  std::mutex mutex_;
  Blocks blocks_;
};

}  // namespace cwkernels
