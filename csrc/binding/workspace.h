#pragma once
#include <cstddef>
#include <cstdint>

namespace cwkernels {

// Asks for huge pages behind fresh memory that is about to be written: a page fault for 2 MB and
// not for 4 KB. Linux only, and only where transparent huge pages are at hand; else nothing
// happens.
void advise_huge_pages(void* data, int64_t bytes);

// Scratch of one call, 64-byte aligned. It comes from a pool that the process keeps, so that a step
// does not pay page faults for it; workspace.cpp.
class Workspace {
 public:
  explicit Workspace(int64_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const { return data_; }

 private:
  void* data_;
  size_t bytes_;
};

}  // namespace cwkernels
