#pragma once
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"
#include "runtime.h"
#include "sanitizers.h"

// What the emulator knows of launches that are under way. schedule.cpp says which thread runs,
// launch.cpp begins and ends blocks and launches, kernel.cpp is what kernels call.
namespace cwkernels::emulator {

constexpr int kLanes = 32;
// Bytes beside a piece of shared memory that nothing may write. AddressSanitizer has its own.
constexpr size_t kMargin = CWK_ASAN ? 0 : 128;
constexpr unsigned char kMarginByte = 0xca;

struct Block;
struct Launch;

struct Meeting {
  Act act;
  unsigned mask, arrived;
  Site site;
};

struct Warp {
  struct Thread* lanes[kLanes] = {};
  // Lanes by state. One in none of them runs, waits in a meeting, or for the launch before.
  unsigned exist = 0, ready = 0, at_barrier = 0, exited = 0;
  bool queued = false;
  std::vector<Meeting> meetings;
  // Keys of order: of a mask's first lane, of its meetings with even and odd numbers.
  char order[2][kLanes];
  unsigned char parity[kLanes] = {};
};

// Copies under way.
struct Copies {
  std::vector<Copy> all;    // those before `first` are there
  std::vector<int> groups;  // how many of each committed group are not
  size_t first = 0;
  int uncommitted = 0;
};

struct Thread {
  Fiber fiber;
  Place place;
  Block* block = nullptr;
  Warp* warp = nullptr;
  int lane = 0;
  bool waited = false, fenced = false;
  void* with = nullptr;  // what it brings to its meeting
  Copies copies;
  char order;

  explicit Thread(void (*entry)()) : fiber(entry) {}
  unsigned bit() const { return 1u << lane; }
};

struct Piece {
  unsigned char* memory;  // with its margins
  size_t bytes, rounded;
};

struct Block {
  Launch* launch = nullptr;
  std::vector<Thread*> threads;
  std::vector<Warp> warps;
  std::vector<Piece> pieces;
  size_t shared_used = 0;
  size_t arrived = 0, exited = 0;
  unsigned barriers = 0;
  Site barrier_site;
  char order[2];
  void* published = nullptr;  // the clock of what fences and barriers let tickets publish
  std::vector<Thread*> fenced;
};

struct Launch {
  Call call;
  std::vector<unsigned char> params;
  Site site;
  int64_t blocks, resident;  // in all; at most at a time
  int64_t stride, offset;    // the order of blocks: offset + i * stride, modulo blocks
  int64_t started = 0, over = 0;
  bool released = false;         // the launch before is over
  std::vector<Thread*> waiting;  // for that
  std::vector<std::unique_ptr<Block>> live;
  char start, end;
};

extern Settings device;
extern Thread* current;  // nullptr: the host runs
extern Fiber host;
extern std::string error;  // the last
extern bool failed;        // the launch that is under way

// --- Turns ---------------------------------------------------------------------------------------

extern uint64_t random_state;
uint64_t draw();
void make_ready(Warp& warp, unsigned lanes);
// Makes the next thread the running one, or the host if none can run; the caller switches to it.
Fiber& next_fiber();
Fiber& host_fiber();
// Lets others run until someone makes this thread ready.
void yield();
// A place where another thread may go first, though this one need not wait.
void pause();
// No lane of it is ready.
void forget(Warp& warp);

// --- Errors --------------------------------------------------------------------------------------

std::string text(const Site& site);
std::string text(const Launch& launch);
std::string text(const Thread& thread);
std::string text(const Meeting& meeting);
// Ends the launch of the running thread. Its blocks are thrown away by the host.
[[noreturn]] void fail(const std::string& what);

// --- Warps ---------------------------------------------------------------------------------------

// Does what a warp does together, other than sync_warp. brought[lane] is of the type that belongs
// to the act, nullptr for a lane that is not in the mask.
void act_together(Act act, unsigned mask, void* const (&brought)[kLanes]);

inline int first_lane(unsigned mask) { return __builtin_ctz(mask); }

}  // namespace cwkernels::emulator
