#include "../../../csrc/ops/copy_rows.h"

#include "../native.h"

namespace {

using namespace native;

// Rows of `bytes` bytes; one of 100 KB is two chunks.
void copy(Isa isa, int64_t bytes, const Buffer<int64_t>& rows) {
  const int64_t bank_rows = 4;
  const Buffer<float> drawn = random_values<float>(bank_rows * bytes, 1);
  const Buffer<uint8_t> bank(bank_rows * bytes);
  for (int64_t i = 0; i < bank.size(); ++i) bank[i] = static_cast<uint8_t>(128 + 127 * drawn[i]);
  std::vector<double> wanted;
  for (int64_t m = 0; m < rows.size(); ++m) {
    for (int64_t b = 0; b < bytes; ++b) wanted.push_back(bank[rows[m] * bytes + b]);
  }
  check<uint8_t>(
      "copy_rows of " + std::to_string(bytes) + " bytes", wanted,
      [&](const Parallel& parallel) {
        Buffer<uint8_t> output(rows.size() * bytes);
        cwkernels::CopyRowsParams p{};
        p.bank = bank.data();
        p.rows = rows.data();
        p.output = output.data();
        p.num_rows = rows.size();
        p.row_bytes = bytes;
        p.parallel = parallel;
        CWK_CALL_CPU(isa, copy_rows, p);
        return output;
      },
      0);
}

const Operation operation("copy_rows", [](Isa isa) {
  for (const int64_t bytes : {1, 7, 64, 100'003}) {
    copy(isa, bytes, {3, 0, 3, 1, 2});
    copy(isa, bytes, {2});
  }
});

}  // namespace
