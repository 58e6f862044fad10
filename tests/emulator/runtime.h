#pragma once
#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>

// What emulator.h is made of: one emulated device on which launches run in the order of their
// stream, block by block, each CUDA thread a fiber. Threads of all resident blocks take turns at
// what they do together; a seed says in which order. One host thread at a time.
namespace cwkernels::emulator {

using Site = std::source_location;

struct Index {
  unsigned x = 1, y = 1, z = 1;
};

// What a kernel sees of where it is.
struct Place {
  Index thread, block, block_size, grid;
};
extern const Place* place;

// The emulated device. Seed 0 runs threads in order.
struct Settings {
  int capability = 90;
  int processors = 3;
  uint64_t seed = 0;
};
void configure(const Settings& settings);
const Settings& settings();
size_t most_shared_bytes();  // of a block on this device
int64_t launches();          // since the last configure

struct Call {
  void (*run)(const void* kernel, const void* params);  // calls the kernel
  const void* kernel;
  const void* params;
  size_t params_bytes;
  int64_t grid[3];
  int threads;
  size_t shared;
};
// Returns a cudaError_t. The launch may run later; what comes after synchronize() sees its results.
int enqueue(const Call& call, Site site);
// Runs what was launched; returns a cudaError_t.
int synchronize();
// What went wrong last, and nothing from then on.
std::string take_error();

// --- Called by kernels ---------------------------------------------------------------------------

// What lanes of a warp do together.
enum class Act { sync_warp, shuffle, votes, mma_tf32, mma_bf16, ldmatrix, ldmatrix_transposed };

struct Exchange {  // shuffle; -1: of no lane
  uint64_t in, out;
  int source;
};
struct Vote {
  bool in;
  unsigned out;
};
struct Product {  // mma
  float* d;
  const uint32_t *a, *b;
};
struct Row {  // ldmatrix
  unsigned char bytes[16];
  uint32_t* d;
};

// `with` is what this lane brings, of the type that belongs to the act.
void meet(Act act, unsigned mask, void* with, Site site);
void sync_block(Site site);
void fence();
void wait_for_previous();
// Before and after a ticket is taken.
void offer_ticket(unsigned* counter);
void accept_ticket(unsigned* counter);

void* take_shared(int piece, size_t bytes, size_t rounded, Site site);
// Fails unless [address, address + bytes) is shared memory of the block, at a multiple of `bytes`.
void check_shared(const void* address, size_t bytes, Site site);

struct Copy {
  void* to;
  const void* from;  // nullptr: zeros
  int bytes;
};
void begin_copy(const Copy& copy, Site site);
void commit_copies();
// Takes one copy out of the groups before the last `pending`; false if there is none.
bool next_copy(int pending, Copy& copy);

}  // namespace cwkernels::emulator
