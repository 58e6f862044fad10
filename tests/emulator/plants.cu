#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "../../csrc/parts/portable.cuh"

// plants NAME bug|clean SEED...: runs a tiny kernel on the emulator once for each seed, with the
// bug of that name or without it. Says what was found and exits with 1, unless a sanitizer has done
// so.
namespace cwkernels {
namespace {

constexpr int kThreads = 64, kBlocks = 4, kValues = kThreads * kBlocks;

struct PlantParams {
  const float* input;  // [kValues]
  float* between;      // [kValues]
  float* output;       // [kValues]
  unsigned* counter;
};

int element() { return static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x); }

// Each thread gives its value to a neighbour, in the block or in the warp.
template <bool kBug, bool kWarps>
__global__ void neighbours(PlantParams p) {
  wait_for_previous();
  Shared shared;
  float* values = shared.take<float>(kThreads);
  const int t = static_cast<int>(threadIdx.x), group = kWarps ? kWarp : kThreads;
  values[t] = p.input[element()];
  if constexpr (!kBug) {
    if constexpr (kWarps) {
      sync_warp();
    } else {
      sync_block();
    }
  }
  p.output[element()] = values[t / group * group + (t + 1) % group];
}

template <bool kBug>
__global__ void copied(PlantParams p) {
  wait_for_previous();
  Shared shared;
  float* values = shared.take<float>(kThreads);
  copy_async<4>(&values[threadIdx.x], &p.input[element()]);
  copy_async_commit();
  if constexpr (!kBug) copy_async_wait<0>();
  p.output[element()] = values[threadIdx.x];
}

// A buffer is filled again while others may still read it.
template <bool kBug>
__global__ void refilled(PlantParams p) {
  wait_for_previous();
  Shared shared;
  float* values = shared.take<float>(kThreads);
  const unsigned other = (threadIdx.x + 1) % kThreads;
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    copy_async<4>(&values[threadIdx.x], &p.input[element()]);
    copy_async_commit();
    copy_async_wait<0>();
    sync_block();
    sum += values[other];
    if constexpr (!kBug) sync_block();
  }
  p.output[element()] = sum / 2;
}

enum class Beside { shared_write, shared_read, global_write };

template <bool kBug, Beside kWhat>
__global__ void overrun(PlantParams p) {
  wait_for_previous();
  Shared shared;
  float* values = shared.take<float>(kThreads);
  const auto beside = [](Beside what) { return kBug && what == kWhat ? 1 : 0; };
  const int t = static_cast<int>(threadIdx.x);
  values[t] = p.input[element()];
  sync_block();
  if (t == kThreads - 1) values[t + beside(Beside::shared_write)] = p.input[element()];
  p.output[element() + beside(Beside::global_write)] = values[t + beside(Beside::shared_read)];
}

template <bool kBug>
__global__ void uninitialised(PlantParams p) {
  wait_for_previous();
  Shared shared;
  float* values = shared.take<float>(kThreads);
  if (!kBug || threadIdx.x != 5) values[threadIdx.x] = p.input[element()];
  p.output[element()] = values[threadIdx.x];
}

template <bool kBug>
__global__ void divergent_shuffle(PlantParams p) {
  wait_for_previous();
  float value = p.input[element()];
  if (!kBug || lane() < 16) value = shuffle(value, (lane() + 1) % kWarp);
  p.output[element()] = value;
}

template <bool kBug>
__global__ void divergent_barrier(PlantParams p) {
  wait_for_previous();
  if (!kBug || threadIdx.x < kWarp) sync_block();
  p.output[element()] = p.input[element()];
}

template <bool kBug>
__global__ void pieces(PlantParams p) {
  wait_for_previous();
  Shared shared;
  const bool odd = kBug && threadIdx.x == 7;
  float* values = shared.take<float>(odd ? kThreads / 2 : kThreads);
  values[threadIdx.x] = p.input[element()];
  p.output[element()] = values[threadIdx.x];
}

template <bool kBug>
__global__ void counted(PlantParams p) {
  wait_for_previous();
  if (threadIdx.x == 0) {
    if constexpr (kBug) {
      *p.counter += 1;
    } else {
      take_ticket(p.counter, 100);
    }
  }
  p.output[element()] = p.input[element()];
}

enum class Ticket { fence, barrier };

// The last block to arrive reads what the others wrote.
template <bool kBug, Ticket kWhat>
__global__ void last_block(PlantParams p) {
  wait_for_previous();
  Shared shared;
  unsigned* ticket = shared.take<unsigned>(1);
  p.between[element()] = p.input[element()];
  if constexpr (!kBug || kWhat != Ticket::fence) fence_device();
  if constexpr (!kBug || kWhat != Ticket::barrier) sync_block();
  if (threadIdx.x == kThreads - 1) *ticket = take_ticket(p.counter, kBlocks - 1);
  sync_block();
  if (*ticket != kBlocks - 1) return;
  for (int i = static_cast<int>(threadIdx.x); i < kValues; i += kThreads) {
    p.output[i] = load_shared_by_blocks(&p.between[i]);
  }
}

template <bool kBug>
__global__ void unwaited(PlantParams p) {
  if (!kBug || threadIdx.x != 3) {
    wait_for_previous();
    p.output[element()] = p.input[element()];
  }
}

__global__ void written_before(PlantParams p) {
  wait_for_previous();
  p.between[element()] = p.input[element()];
  allow_next();
}

template <bool kBug>
__global__ void read_early(PlantParams p) {
  float value = 0;
  if constexpr (kBug) value = p.between[element()];
  wait_for_previous();
  if constexpr (!kBug) value = p.between[element()];
  p.output[element()] = value;
}

// --- What is run ---------------------------------------------------------------------------------

using Kernel = void (*)(PlantParams);
int same(int i) { return i; }
int next_in_block(int i) { return i / kThreads * kThreads + (i + 1) % kThreads; }
int next_in_warp(int i) { return i / kWarp * kWarp + (i + 1) % kWarp; }

struct Plant {
  const char* name;
  Kernel bug, clean;
  int (*source)(int);  // the element of the input that an element of the output is to be
  Kernel before = nullptr;
};

constexpr Plant kPlants[] = {
    {"no_sync_block", neighbours<true, false>, neighbours<false, false>, next_in_block},
    {"no_sync_warp", neighbours<true, true>, neighbours<false, true>, next_in_warp},
    {"no_copy_wait", copied<true>, copied<false>, same},
    {"refilled_in_use", refilled<true>, refilled<false>, next_in_block},
    {"shared_overrun", overrun<true, Beside::shared_write>, overrun<false, Beside::shared_write>,
     same},
    {"shared_overread", overrun<true, Beside::shared_read>, overrun<false, Beside::shared_read>,
     same},
    {"global_overrun", overrun<true, Beside::global_write>, overrun<false, Beside::global_write>,
     same},
    {"uninitialised", uninitialised<true>, uninitialised<false>, same},
    {"divergent_shuffle", divergent_shuffle<true>, divergent_shuffle<false>, next_in_warp},
    {"divergent_barrier", divergent_barrier<true>, divergent_barrier<false>, same},
    {"other_piece", pieces<true>, pieces<false>, same},
    {"plain_add", counted<true>, counted<false>, same},
    {"no_fence", last_block<true, Ticket::fence>, last_block<false, Ticket::fence>, same},
    {"ticket_too_early", last_block<true, Ticket::barrier>, last_block<false, Ticket::barrier>,
     same},
    {"no_wait", unwaited<true>, unwaited<false>, same},
    {"read_before_wait", read_early<true>, read_early<false>, same, written_before},
};

bool run(const Plant& plant, bool bug, uint64_t seed) {
  emulator::configure({90, 3, seed});
  // Of exactly this size, so that an access beside it is seen.
  const std::unique_ptr<float[]> values[3] = {std::make_unique<float[]>(kValues),
                                              std::make_unique<float[]>(kValues),
                                              std::make_unique<float[]>(kValues)};
  const auto counter = std::make_unique<unsigned>(0);
  for (int i = 0; i < kValues; ++i) values[0][i] = static_cast<float>(i + 1);
  const PlantParams params{values[0].get(), values[1].get(), values[2].get(), counter.get()};
  const size_t shared = shared_bytes<float>(kThreads);
  const Grid grid{kBlocks};
  int error = plant.before ? launch(plant.before, grid, kThreads, shared, nullptr, params) : 0;
  if (!error) {
    error = launch(bug ? plant.bug : plant.clean, grid, kThreads, shared, nullptr, params);
  }
  if (!error) error = emulator::synchronize();
  if (error) return std::printf("cudaError %d: %s\n", error, emulator::take_error().c_str()), false;
  for (int i = 0; i < kValues; ++i) {
    const auto wanted = static_cast<float>(plant.source(i) + 1);
    const float got = values[2][i];
    if (got == wanted) continue;
    std::printf("wrong value %d: wanted %g, got %g\n", i, static_cast<double>(wanted),
                static_cast<double>(got));
    return false;
  }
  return true;
}

}  // namespace
}  // namespace cwkernels

int main(int count, char** arguments) {
  bool right = count > 3;
  for (const cwkernels::Plant& plant : cwkernels::kPlants) {
    if (count < 2) std::printf("%s\n", plant.name);
    if (count < 4 || std::strcmp(arguments[1], plant.name) != 0) continue;
    const bool bug = std::strcmp(arguments[2], "bug") == 0;
    for (int i = 3; i < count; ++i) {
      right &= cwkernels::run(plant, bug, std::strtoull(arguments[i], nullptr, 10));
    }
  }
  return right ? 0 : 1;
}
