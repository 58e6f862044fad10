#pragma once
#include <cstddef>
#include <cstdint>

namespace cwkernels {

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
