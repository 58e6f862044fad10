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

const char* name(Act act) {
  switch (act) {
    case Act::sync_warp: return "sync_warp";
    case Act::shuffle: return "a shuffle";
    case Act::votes: return "votes";
    case Act::mma_tf32: return "mma_tf32";
    case Act::mma_bf16: return "mma_bf16";
    case Act::ldmatrix: return "ldmatrix";
    case Act::ldmatrix_transposed: return "ldmatrix_transposed";
  }
  return "";
}

// Stays with a warp for a while, or its stacks would be in no cache.
Thread* pick() {
  if (!active || active->ready == 0 || (device.seed != 0 && draw() % 32 == 0)) {
    active = nullptr;
    while (!active && !queue.empty()) {
      const size_t i = device.seed == 0 ? 0 : draw() % queue.size();
      active = queue[i];
      if (active->ready != 0) break;
      active->queued = false;
      queue.erase(queue.begin() + static_cast<std::ptrdiff_t>(i));
      active = nullptr;
    }
    if (!active) return nullptr;
  }
  const unsigned turn = device.seed == 0 ? 0 : static_cast<unsigned>(draw() % kLanes);
  const unsigned turned = active->ready >> turn | active->ready << (kLanes - turn) % kLanes;
  const unsigned lane = (static_cast<unsigned>(first_lane(turned)) + turn) % kLanes;
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
  const size_t end = name.find('(');
  const size_t begin = name.rfind(' ', end);
  return name.substr(begin + 1, end - begin - 1) + " (" + text(launch.site) + ")";
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
  return std::string(name(meeting.act)) + " with mask " + mask + " at " + text(meeting.site);
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
}

}  // namespace cwkernels::emulator
