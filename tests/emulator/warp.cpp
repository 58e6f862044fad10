#include <bit>
#include <cmath>
#include <cstring>

#include "state.h"

// The layouts of fragments are those of the PTX manual, "Warp-level matrix instructions":
// g = lane / 4 and t = lane % 4.
namespace cwkernels::emulator {
namespace {

template <class T>
T& of(void* brought) {
  return *static_cast<T*>(brought);
}

void shuffle(unsigned mask, void* const (&brought)[32]) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    Exchange& own = of<Exchange>(brought[lane]);
    // Of a lane that does not take part the hardware gives anything: all bits set, NaN.
    own.out = mask >> own.source & 1 ? of<Exchange>(brought[own.source]).in : ~uint64_t{0};
  }
}

void votes(unsigned mask, void* const (&brought)[32]) {
  unsigned all = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) all |= static_cast<unsigned>(of<Vote>(brought[lane]).in) << lane;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) of<Vote>(brought[lane]).out = all;
  }
}

// The matrix units round toward zero when they add.
float toward_zero(double value) {
  const float nearest = static_cast<float>(value);
  if (!(std::fabs(static_cast<double>(nearest)) > std::fabs(value))) return nearest;
  return std::isinf(nearest) && std::isinf(value) ? nearest : std::nextafter(nearest, 0.0f);
}

template <int kDepth>
void multiply(const float (&a)[16][kDepth], const float (&b)[kDepth][8],
              void* const (&brought)[32]) {
  double d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      d[lane / 4 + 8 * (i / 2)][lane % 4 * 2 + i % 2] =
          static_cast<double>(of<Product>(brought[lane]).d[i]);
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < kDepth; ++k) {
      const auto factor = static_cast<double>(a[row][k]);
      for (int column = 0; column < 8; ++column) {
        d[row][column] += factor * static_cast<double>(b[k][column]);
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      of<Product>(brought[lane]).d[i] =
          toward_zero(d[lane / 4 + 8 * (i / 2)][lane % 4 * 2 + i % 2]);
    }
  }
}

// The hardware does not read the low 13 bits.
float tf32(uint32_t bits) { return std::bit_cast<float>(bits & ~0x1fffu); }

void mma_tf32(void* const (&brought)[32]) {
  float a[16][8], b[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const Product& with = of<Product>(brought[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) a[g + 8 * (i % 2)][t + 4 * (i / 2)] = tf32(with.a[i]);
    for (int i = 0; i < 2; ++i) b[t + 4 * i][g] = tf32(with.b[i]);
  }
  multiply(a, b, brought);
}

float half_of(uint32_t packed, int half) {
  return std::bit_cast<float>(half ? packed & 0xffff0000u : packed << 16);
}

void mma_bf16(void* const (&brought)[32]) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const Product& with = of<Product>(brought[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) {
        a[g + 8 * (i % 2)][t * 2 + half + 8 * (i / 2)] = half_of(with.a[i], half);
      }
      for (int i = 0; i < 2; ++i) b[t * 2 + half + 8 * i][g] = half_of(with.b[i], half);
    }
  }
  multiply(a, b, brought);
}

uint32_t value_of(const Row& row, int column) {
  uint16_t value;
  std::memcpy(&value, row.bytes + 2 * column, sizeof(value));
  return value;
}

void ldmatrix(bool transposed, void* const (&brought)[32]) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint32_t packed = 0;
      for (int half = 0; half < 2; ++half) {
        const int row = transposed ? lane % 4 * 2 + half : lane / 4;
        const int column = transposed ? lane / 4 : lane % 4 * 2 + half;
        packed |= value_of(of<Row>(brought[matrix * 8 + row]), column) << 16 * half;
      }
      of<Row>(brought[lane]).d[matrix] = packed;
    }
  }
}

}  // namespace

void act_together(Act act, unsigned mask, void* const (&brought)[32]) {
  switch (act) {
    case Act::sync_warp: return;
    case Act::shuffle: return shuffle(mask, brought);
    case Act::votes: return votes(mask, brought);
    case Act::mma_tf32: return mma_tf32(brought);
    case Act::mma_bf16: return mma_bf16(brought);
    case Act::ldmatrix: return ldmatrix(false, brought);
    case Act::ldmatrix_transposed: return ldmatrix(true, brought);
  }
}

}  // namespace cwkernels::emulator
