#include <cstdio>
#include <cstdlib>

#include "state.h"

namespace cwkernels::emulator {

const Place* place = nullptr;
Settings device;
Fiber host;
Thread* current = nullptr;
std::string error;
bool failed = false;
uint64_t random_state = 1;

uint64_t draw() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state * 0x2545f4914f6cdd1d >> 32;
}

namespace {

Warp* active = nullptr;
std::vector<Warp*> queue;  // warps with ready lanes, and some without

constexpr const char* kActs[] = {"sync_warp", "a shuffle", "votes",  // in the order of Act
                                 "mma_tf32",  "mma_bf16",  "ldmatrix", "ldmatrix_transposed"};

// Stays with a warp for a while, or its stacks would be in no cache.
Thread* pick() {
  if (!active || active->ready == 0 || (device.seed != 0 && draw() % 32 == 0)) {
    while (true) {
      if (queue.empty()) return nullptr;
      const size_t i = device.seed == 0 ? 0 : draw() % queue.size();
      active = queue[i];
      if (active->ready != 0) break;
      forget(*active);
    }
  }
  const unsigned from = device.seed == 0 ? 0 : static_cast<unsigned>(draw() % kLanes);
  const unsigned behind = active->ready & ~0u << from;
  const int lane = first_lane(behind ? behind : active->ready);
  active->ready &= ~(1u << lane);
  return active->lanes[lane];
}

}  // namespace

// --- Errors --------------------------------------------------------------------------------------

std::string text(const Site& site) {
  const std::string file = site.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line());
}

std::string text(const Launch& launch) {
  const std::string name = launch.site.function_name();
  const size_t end = name.find('('), begin = name.rfind(' ', end) + 1;
  return name.substr(begin, end - begin) + " (" + text(launch.site) + ")";
}

std::string text(const Thread& thread) {
  const Index& block = thread.place.block;
  return text(*thread.block->launch) + ", block (" + std::to_string(block.x) + ", " +
         std::to_string(block.y) + ", " + std::to_string(block.z) + "), thread " +
         std::to_string(thread.place.thread.x);
}

std::string text(const Meeting& meeting) {
  char mask[16];
  std::snprintf(mask, sizeof(mask), "%08x", meeting.mask);
  return std::string(kActs[static_cast<int>(meeting.act)]) + " with mask " + mask + " at " +
         text(meeting.site);
}

[[noreturn]] void fail(const std::string& what) {
  error = text(*current) + ": " + what;
  failed = true;
  Fiber& self = current->fiber;
  Unseen::end();  // the one of the function that the kernel called
  self.switch_to(host_fiber(), true);
  std::abort();
}

// --- Taking turns --------------------------------------------------------------------------------

void make_ready(Warp& warp, unsigned lanes) {
  warp.ready |= lanes;
  if (warp.queued || lanes == 0) return;
  warp.queued = true;
  queue.push_back(&warp);
}

Fiber& next_fiber() {
  current = pick();
  place = current ? &current->place : nullptr;
  return current ? current->fiber : host;
}

Fiber& host_fiber() {
  current = nullptr;
  place = nullptr;
  return host;
}

void yield() {
  Fiber& self = current->fiber;
  Fiber& next = next_fiber();
  if (&next != &self) self.switch_to(next);
}

void pause() {
  if (device.seed == 0) return;
  make_ready(*current->warp, current->bit());
  yield();
}

void forget(Warp& warp) {
  if (active == &warp) active = nullptr;
  if (warp.queued) std::erase(queue, &warp);
  warp.queued = false;
}

}  // namespace cwkernels::emulator
