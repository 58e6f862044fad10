#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "../../csrc/parts/isa.h"
#include "../../csrc/parts/parallel.h"

// What the cases of an operation are written with. A case draws its inputs into buffers of exactly
// the size that the contract names, calls the kernel under each schedule and compares with a plain
// loop in double. The operations register themselves: one file each in tests/native/cases.
namespace native {

using cwkernels::Isa;
using cwkernels::Parallel;

// An operation's short case list, by name.
struct Operation {
  Operation(const char* name, void (*run)(Isa isa));
};

// Heap memory of exactly `size` elements, so that an access next to it is seen. At first all bits
// are set: NaN, or -1.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size = 0) : size_(size), data_(new T[static_cast<size_t>(size)]) {
    if (size > 0) std::memset(static_cast<void*>(data_.get()), 0xff, bytes());
  }
  Buffer(std::initializer_list<T> values) : Buffer(static_cast<int64_t>(values.size())) {
    std::copy(values.begin(), values.end(), data_.get());
  }

  T* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  size_t bytes() const { return static_cast<size_t>(size_) * sizeof(T); }
  T& operator[](int64_t i) const { return data_[static_cast<size_t>(i)]; }

 private:
  int64_t size_;
  std::unique_ptr<T[]> data_;
};

// Exactly `bytes` bytes at a multiple of 64, as the bindings hand over workspaces; all bits set.
class Workspace {
 public:
  explicit Workspace(int64_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
};

// Values in [-1, 1), the same in every run.
template <class T>
Buffer<T> random_values(int64_t size, uint64_t seed) {
  Buffer<T> values(size);
  uint64_t state = seed * 2 + 1;
  for (int64_t i = 0; i < size; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    values[i] = static_cast<T>(static_cast<double>(state >> 40) / (1 << 23) - 1);
  }
  return values;
}

// How the tasks of a kernel run: in order, backwards, or task i on thread i % kThreads, so that
// neighbouring tasks always run on two threads. All say the same number of threads, for which a
// kernel's result is bitwise one and the same.
constexpr int64_t kThreads = 3;
const std::vector<Parallel>& schedules();

// Buffers one behind the other, for several outputs of one call.
template <class T>
Buffer<T> joined(const std::vector<const Buffer<T>*>& parts) {
  int64_t size = 0;
  for (const Buffer<T>* part : parts) size += part->size();
  Buffer<T> result(size);
  T* to = result.data();
  for (const Buffer<T>* part : parts) to = std::copy_n(part->data(), part->size(), to);
  return result;
}

// Counts a case, and a failure if it is one.
void report(const std::string& name, bool passed);

// Whether all values are as near to `wanted` as `tolerance` times the largest of them.
template <class T>
bool as_close(const Buffer<T>& got, const std::vector<double>& wanted, double tolerance) {
  double largest = 0, apart = 0;
  for (const double value : wanted) largest = std::fmax(largest, std::fabs(value));
  for (int64_t i = 0; i < got.size(); ++i) {
    const double difference =
        std::fabs(static_cast<double>(got[i]) - wanted[static_cast<size_t>(i)]);
    if (!(difference <= apart)) apart = difference;  // NaN stays
  }
  return static_cast<size_t>(got.size()) == wanted.size() && apart <= tolerance * largest;
}

template <class T>
bool same_bits(const Buffer<T>& a, const Buffer<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.bytes()) == 0;
}

// Rounding of sums of some thousand products, relative to the largest result.
template <class T>
constexpr double kTolerance = sizeof(T) == 8 ? 1e-13 : 1e-5;

// What a convolution is allowed that may run by Winograd's method in single precision, with what
// follows from it.
constexpr double kWinogradTolerance = 1e-4;

// run(parallel) calls a kernel and gives its output. It must be near `wanted` and bitwise the same
// under every schedule.
template <class T, class F>
void check(const std::string& name, const std::vector<double>& wanted, const F& run,
           double tolerance = kTolerance<T>) {
  const Buffer<T> first = run(schedules().front());
  bool passed = as_close(first, wanted, tolerance);
  for (size_t i = 1; i < schedules().size(); ++i) passed &= same_bits(first, run(schedules()[i]));
  report(name, passed);
}

}  // namespace native
