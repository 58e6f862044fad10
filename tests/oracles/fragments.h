#pragma once

// Which lane of a warp holds which element of a matrix, as the figures of the PTX manual show it
// ("Matrix Fragments for mma.m16n8k8", "... for mma.m16n8k16 with floating point type",
// "ldmatrix"): a row of a table is a row of the matrix, and 12a3 is element a3 of lane 12. A
// register holds one element of tf32 or fp32, and two of 16 bits, the even one in its lower half.
namespace cwkernels::fragments {

struct Owner {
  int lane, element;
};

// Who holds a column of a row.
constexpr Owner owner(const char* row, int column) {
  for (; column > 0; ++row) column -= *row == ' ';
  Owner found{0, 0};
  for (; *row >= '0' && *row <= '9'; ++row) found.lane = found.lane * 10 + (*row - '0');
  found.element = row[1] - '0';
  return found;
}

// mma_tf32: m16n8k8, .tf32.
inline constexpr const char* kTf32A[16] = {
    "0a0 1a0 2a0 3a0 0a2 1a2 2a2 3a2",         "4a0 5a0 6a0 7a0 4a2 5a2 6a2 7a2",
    "8a0 9a0 10a0 11a0 8a2 9a2 10a2 11a2",     "12a0 13a0 14a0 15a0 12a2 13a2 14a2 15a2",
    "16a0 17a0 18a0 19a0 16a2 17a2 18a2 19a2", "20a0 21a0 22a0 23a0 20a2 21a2 22a2 23a2",
    "24a0 25a0 26a0 27a0 24a2 25a2 26a2 27a2", "28a0 29a0 30a0 31a0 28a2 29a2 30a2 31a2",
    "0a1 1a1 2a1 3a1 0a3 1a3 2a3 3a3",         "4a1 5a1 6a1 7a1 4a3 5a3 6a3 7a3",
    "8a1 9a1 10a1 11a1 8a3 9a3 10a3 11a3",     "12a1 13a1 14a1 15a1 12a3 13a3 14a3 15a3",
    "16a1 17a1 18a1 19a1 16a3 17a3 18a3 19a3", "20a1 21a1 22a1 23a1 20a3 21a3 22a3 23a3",
    "24a1 25a1 26a1 27a1 24a3 25a3 26a3 27a3", "28a1 29a1 30a1 31a1 28a3 29a3 30a3 31a3",
};

inline constexpr const char* kTf32B[8] = {
    "0b0 4b0 8b0 12b0 16b0 20b0 24b0 28b0",  "1b0 5b0 9b0 13b0 17b0 21b0 25b0 29b0",
    "2b0 6b0 10b0 14b0 18b0 22b0 26b0 30b0", "3b0 7b0 11b0 15b0 19b0 23b0 27b0 31b0",
    "0b1 4b1 8b1 12b1 16b1 20b1 24b1 28b1",  "1b1 5b1 9b1 13b1 17b1 21b1 25b1 29b1",
    "2b1 6b1 10b1 14b1 18b1 22b1 26b1 30b1", "3b1 7b1 11b1 15b1 19b1 23b1 27b1 31b1",
};

// mma_bf16: m16n8k16, .bf16.
inline constexpr const char* kBf16A[16] = {
    "0a0 0a1 1a0 1a1 2a0 2a1 3a0 3a1 0a4 0a5 1a4 1a5 2a4 2a5 3a4 3a5",
    "4a0 4a1 5a0 5a1 6a0 6a1 7a0 7a1 4a4 4a5 5a4 5a5 6a4 6a5 7a4 7a5",
    "8a0 8a1 9a0 9a1 10a0 10a1 11a0 11a1 8a4 8a5 9a4 9a5 10a4 10a5 11a4 11a5",
    "12a0 12a1 13a0 13a1 14a0 14a1 15a0 15a1 12a4 12a5 13a4 13a5 14a4 14a5 15a4 15a5",
    "16a0 16a1 17a0 17a1 18a0 18a1 19a0 19a1 16a4 16a5 17a4 17a5 18a4 18a5 19a4 19a5",
    "20a0 20a1 21a0 21a1 22a0 22a1 23a0 23a1 20a4 20a5 21a4 21a5 22a4 22a5 23a4 23a5",
    "24a0 24a1 25a0 25a1 26a0 26a1 27a0 27a1 24a4 24a5 25a4 25a5 26a4 26a5 27a4 27a5",
    "28a0 28a1 29a0 29a1 30a0 30a1 31a0 31a1 28a4 28a5 29a4 29a5 30a4 30a5 31a4 31a5",
    "0a2 0a3 1a2 1a3 2a2 2a3 3a2 3a3 0a6 0a7 1a6 1a7 2a6 2a7 3a6 3a7",
    "4a2 4a3 5a2 5a3 6a2 6a3 7a2 7a3 4a6 4a7 5a6 5a7 6a6 6a7 7a6 7a7",
    "8a2 8a3 9a2 9a3 10a2 10a3 11a2 11a3 8a6 8a7 9a6 9a7 10a6 10a7 11a6 11a7",
    "12a2 12a3 13a2 13a3 14a2 14a3 15a2 15a3 12a6 12a7 13a6 13a7 14a6 14a7 15a6 15a7",
    "16a2 16a3 17a2 17a3 18a2 18a3 19a2 19a3 16a6 16a7 17a6 17a7 18a6 18a7 19a6 19a7",
    "20a2 20a3 21a2 21a3 22a2 22a3 23a2 23a3 20a6 20a7 21a6 21a7 22a6 22a7 23a6 23a7",
    "24a2 24a3 25a2 25a3 26a2 26a3 27a2 27a3 24a6 24a7 25a6 25a7 26a6 26a7 27a6 27a7",
    "28a2 28a3 29a2 29a3 30a2 30a3 31a2 31a3 28a6 28a7 29a6 29a7 30a6 30a7 31a6 31a7",
};

inline constexpr const char* kBf16B[16] = {
    "0b0 4b0 8b0 12b0 16b0 20b0 24b0 28b0",  "0b1 4b1 8b1 12b1 16b1 20b1 24b1 28b1",
    "1b0 5b0 9b0 13b0 17b0 21b0 25b0 29b0",  "1b1 5b1 9b1 13b1 17b1 21b1 25b1 29b1",
    "2b0 6b0 10b0 14b0 18b0 22b0 26b0 30b0", "2b1 6b1 10b1 14b1 18b1 22b1 26b1 30b1",
    "3b0 7b0 11b0 15b0 19b0 23b0 27b0 31b0", "3b1 7b1 11b1 15b1 19b1 23b1 27b1 31b1",
    "0b2 4b2 8b2 12b2 16b2 20b2 24b2 28b2",  "0b3 4b3 8b3 12b3 16b3 20b3 24b3 28b3",
    "1b2 5b2 9b2 13b2 17b2 21b2 25b2 29b2",  "1b3 5b3 9b3 13b3 17b3 21b3 25b3 29b3",
    "2b2 6b2 10b2 14b2 18b2 22b2 26b2 30b2", "2b3 6b3 10b3 14b3 18b3 22b3 26b3 30b3",
    "3b2 7b2 11b2 15b2 19b2 23b2 27b2 31b2", "3b3 7b3 11b3 15b3 19b3 23b3 27b3 31b3",
};

// The accumulators of both.
inline constexpr const char* kSums[16] = {
    "0c0 0c1 1c0 1c1 2c0 2c1 3c0 3c1",         "4c0 4c1 5c0 5c1 6c0 6c1 7c0 7c1",
    "8c0 8c1 9c0 9c1 10c0 10c1 11c0 11c1",     "12c0 12c1 13c0 13c1 14c0 14c1 15c0 15c1",
    "16c0 16c1 17c0 17c1 18c0 18c1 19c0 19c1", "20c0 20c1 21c0 21c1 22c0 22c1 23c0 23c1",
    "24c0 24c1 25c0 25c1 26c0 26c1 27c0 27c1", "28c0 28c1 29c0 29c1 30c0 30c1 31c0 31c1",
    "0c2 0c3 1c2 1c3 2c2 2c3 3c2 3c3",         "4c2 4c3 5c2 5c3 6c2 6c3 7c2 7c3",
    "8c2 8c3 9c2 9c3 10c2 10c3 11c2 11c3",     "12c2 12c3 13c2 13c3 14c2 14c3 15c2 15c3",
    "16c2 16c3 17c2 17c3 18c2 18c3 19c2 19c3", "20c2 20c3 21c2 21c3 22c2 22c3 23c2 23c3",
    "24c2 24c3 25c2 25c3 26c2 26c3 27c2 27c3", "28c2 28c3 29c2 29c3 30c2 30c3 31c2 31c3",
};

// One of ldmatrix's four 8 x 8 matrices, as it lies in shared memory; register i holds matrix i.
inline constexpr const char* kRows[8] = {
    "0r0 0r1 1r0 1r1 2r0 2r1 3r0 3r1",         "4r0 4r1 5r0 5r1 6r0 6r1 7r0 7r1",
    "8r0 8r1 9r0 9r1 10r0 10r1 11r0 11r1",     "12r0 12r1 13r0 13r1 14r0 14r1 15r0 15r1",
    "16r0 16r1 17r0 17r1 18r0 18r1 19r0 19r1", "20r0 20r1 21r0 21r1 22r0 22r1 23r0 23r1",
    "24r0 24r1 25r0 25r1 26r0 26r1 27r0 27r1", "28r0 28r1 29r0 29r1 30r0 30r1 31r0 31r1",
};

inline constexpr const char* kRowsTransposed[8] = {
    "0r0 4r0 8r0 12r0 16r0 20r0 24r0 28r0",  "0r1 4r1 8r1 12r1 16r1 20r1 24r1 28r1",
    "1r0 5r0 9r0 13r0 17r0 21r0 25r0 29r0",  "1r1 5r1 9r1 13r1 17r1 21r1 25r1 29r1",
    "2r0 6r0 10r0 14r0 18r0 22r0 26r0 30r0", "2r1 6r1 10r1 14r1 18r1 22r1 26r1 30r1",
    "3r0 7r0 11r0 15r0 19r0 23r0 27r0 31r0", "3r1 7r1 11r1 15r1 19r1 23r1 27r1 31r1",
};

}  // namespace cwkernels::fragments
