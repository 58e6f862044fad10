#include "../../../csrc/ops/sgd.h"

#include "../native.h"

namespace {

using namespace native;

// A bank of four rows: row 3 moves by the sum of two entries, row 1 by one, row 2 by none. Then all
// of the weights and of the momentum are compared, the rows that do not move too.
template <class T>
void move(Isa isa, int64_t row_size, bool shared, double decay, const std::string& name) {
  const int64_t sets = 4, momentum_rows = shared ? 1 : sets;
  const double lr = 0.1, momentum = 0.9;
  const Buffer<T> weight = random_values<T>(sets * row_size, 1);
  const Buffer<T> buffer = random_values<T>(momentum_rows * row_size, 2);
  const Buffer<T> grad = random_values<T>(3 * row_size, 3);
  const std::vector<cwkernels::SgdRow> of{{3, 0, 2}, {1, 2, 1}, {2, 3, 0}};
  const Buffer<int64_t> entries{2, 0, 1};

  std::vector<double> wanted(weight.data(), weight.data() + weight.size());
  wanted.insert(wanted.end(), buffer.data(), buffer.data() + buffer.size());
  for (const cwkernels::SgdRow& row : of) {
    for (int64_t i = 0; i < row_size; ++i) {
      double& w = wanted[row.row * row_size + i];
      double& m = wanted[weight.size() + (shared ? 0 : row.row * row_size) + i];
      double g = decay * w;
      for (int64_t e = 0; e < row.count; ++e) g += grad[entries[row.first + e] * row_size + i];
      m = momentum * m + g;
      w -= lr * m;
    }
  }
  check<T>(name, wanted, [&](const Parallel& parallel) {
    Buffer<T> own_weight(weight.size()), own_buffer(buffer.size());
    std::copy_n(weight.data(), weight.size(), own_weight.data());
    std::copy_n(buffer.data(), buffer.size(), own_buffer.data());
    Buffer<cwkernels::SgdRow> moves(static_cast<int64_t>(of.size()));
    std::copy(of.begin(), of.end(), moves.data());
    const cwkernels::SgdTarget target{sizeof(T) == 8,       shared,       own_weight.data(),
                                      own_buffer.data(),    grad.data(),  moves.data(),
                                      entries.data(),       moves.size(), row_size,
                                      {lr, momentum, decay}};
    CWK_CALL_CPU(isa, sgd, {&target, 1, parallel, nullptr});
    Buffer<T> result(weight.size() + buffer.size());
    std::copy_n(own_weight.data(), weight.size(), result.data());
    std::copy_n(own_buffer.data(), buffer.size(), result.data() + weight.size());
    return result;
  });
}

const Operation operation("sgd", [](Isa isa) {
  // 100,003 elements are shared between threads.
  for (const int64_t row_size : {1, 7, 64, 4099, 100'003}) {
    for (const bool shared : {false, true}) {
      const std::string name = "sgd, rows of " + std::to_string(row_size);
      move<float>(isa, row_size, shared, 0.01, name + ", float");
      move<double>(isa, row_size, shared, 0, name + ", double");
    }
  }
});

}  // namespace
