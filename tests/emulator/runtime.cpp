#include "runtime.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <deque>
#include <numeric>
#include <utility>
#include <vector>

#include "fiber.h"
#include "sanitizers.h"
#include "warp.h"

namespace cwkernels::emulator {

const Place* place = nullptr;

namespace {

constexpr int kLanes = 32;
constexpr int kInvalidValue = 1, kInvalidConfiguration = 9, kLaunchFailure = 719;
// Of CUDA threads that live at a time.
constexpr int kMostThreads = CWK_TSAN ? 1024 : 4096;
// A fiber that is used again is in order with its last thread, as ThreadSanitizer sees it, and a new
// one costs half a millisecond. So many are used before the first is used again.
constexpr size_t kLeastFibers = CWK_TSAN ? 2048 : 0;
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
  Block* block = nullptr;
  struct Thread* lanes[kLanes] = {};
  // Lanes by state; one that is in none of them runs, or waits in a meeting or for the launch
  // before.
  unsigned exist = 0, ready = 0, at_barrier = 0, exited = 0;
  bool queued = false;
  std::vector<Meeting> meetings;
  // Keys of order: of a mask's first lane, of its meetings with even and odd numbers.
  char order[2][kLanes];
  unsigned char parity[kLanes] = {};
};

struct Thread {
  Fiber fiber;
  Place place;
  Block* block = nullptr;
  Warp* warp = nullptr;
  int lane = 0;
  bool waited = false, fenced = false;
  void* with = nullptr;      // what it brings to its meeting
  std::vector<Copy> copies;  // under way, those before first_copy are there
  size_t first_copy = 0;
  std::vector<int> groups;  // copies in each committed group that is not there
  int uncommitted = 0;
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

Settings device;
int64_t launched = 0;
uint64_t random_state = 1;
Fiber host;
Thread* current = nullptr;
Warp* active = nullptr;
std::vector<Warp*> queue;  // warps with ready lanes, and some without
std::deque<std::unique_ptr<Thread>> idle;
size_t fibers = 0;
std::unique_ptr<Launch> pending;
std::string error;
bool failed = false;

uint64_t draw() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state * 0x2545f4914f6cdd1d >> 32;
}

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

std::string text(const Meeting& meeting) {
  char mask[16];
  std::snprintf(mask, sizeof(mask), "%08x", meeting.mask);
  return std::string(name(meeting.act)) + " with mask " + mask + " at " + text(meeting.site);
}

// Ends the launch of the running thread. Its blocks are thrown away by the host.
[[noreturn]] void fail(const std::string& what) {
  error = text(*current) + ": " + what;
  failed = true;
  place = nullptr;
  Unseen::end();  // the one of the function that the kernel called
  current->fiber.switch_to(host, true);
  std::abort();
}

int first_lane(unsigned mask) { return __builtin_ctz(mask); }

// --- Taking turns --------------------------------------------------------------------------------

void make_ready(Warp& warp, unsigned lanes) {
  warp.ready |= lanes;
  if (warp.queued || lanes == 0) return;
  warp.queued = true;
  queue.push_back(&warp);
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

// Makes the next thread the running one, to which the caller switches; the host if none can run.
Fiber& pick_fiber() {
  current = pick();
  place = current ? &current->place : nullptr;
  return current ? current->fiber : host;
}

void yield() {
  Fiber& self = current->fiber;
  Fiber& next = pick_fiber();
  if (&next != &self) self.switch_to(next);
}

// A place where another thread may go first, though this one need not wait.
void pause() {
  if (device.seed == 0) return;
  make_ready(*current->warp, current->bit());
  yield();
}

Fiber& end_of_thread() {
  const Unseen unseen;
  Thread& self = *current;
  Block& block = *self.block;
  Warp& warp = *self.warp;
  if (!self.waited) fail("exits without wait_for_previous");
  for (const Meeting& meeting : warp.meetings) {
    if (meeting.mask & self.bit()) fail("exits, and others wait for it in " + text(meeting));
  }
  if (block.arrived != 0) {
    fail("exits, and others wait for it in sync_block at " + text(block.barrier_site));
  }
  publish(&block.launch->end);
  warp.exited |= self.bit();
  if (++block.exited < block.threads.size()) return pick_fiber();
  current = nullptr;
  place = nullptr;
  return host;  // which starts the next block
}

void run_thread() {
  const Call& call = current->block->launch->call;
  call.run(call.kernel, call.params);
  Fiber& self = current->fiber;
  self.switch_to(end_of_thread(), true);
  std::abort();
}

// --- Blocks --------------------------------------------------------------------------------------

Thread* take_thread() {
  if (idle.empty() || fibers < kLeastFibers) {
    ++fibers;
    return new Thread(run_thread);
  }
  Thread* thread = idle.front().release();
  idle.pop_front();
  return thread;
}

void start_block(Launch& launch) {
  const int64_t number =
      (launch.offset + launch.started++ % launch.blocks * launch.stride) % launch.blocks;
  launch.live.push_back(std::make_unique<Block>());
  Block& block = *launch.live.back();
  block.launch = &launch;
  const auto threads = static_cast<size_t>(launch.call.threads);
  block.warps.resize((threads + kLanes - 1) / kLanes);
  const auto part = [&](int64_t value) { return static_cast<unsigned>(value); };
  const int64_t* grid = launch.call.grid;
  for (size_t i = 0; i < threads; ++i) {
    Thread* thread = take_thread();
    thread->place.thread = {part(static_cast<int64_t>(i)), 0, 0};
    thread->place.block = {part(number % grid[0]), part(number / grid[0] % grid[1]),
                           part(number / grid[0] / grid[1])};
    thread->place.block_size = {part(launch.call.threads), 1, 1};
    thread->place.grid = {part(grid[0]), part(grid[1]), part(grid[2])};
    thread->block = &block;
    thread->lane = static_cast<int>(i % kLanes);
    thread->warp = &block.warps[i / kLanes];
    thread->waited = thread->fenced = false;
    thread->copies.clear();
    thread->groups.clear();
    thread->first_copy = 0;
    thread->uncommitted = 0;
    thread->fiber.restart();
    thread->warp->block = &block;
    thread->warp->lanes[thread->lane] = thread;
    thread->warp->exist |= thread->bit();
    block.threads.push_back(thread);
  }
  for (Warp& warp : block.warps) make_ready(warp, warp.exist);
}

// What a write beside a piece has left there, if AddressSanitizer does not look.
bool margins_hold(const Piece& piece) {
  const unsigned char* end = piece.memory + kMargin + piece.rounded + kMargin;
  for (const unsigned char* byte = piece.memory; byte < end; ++byte) {
    if (byte == piece.memory + kMargin) byte += piece.bytes;
    if (byte < end && *byte != kMarginByte) return false;
  }
  return true;
}

void end_block(Block& block) {
  if (!CWK_ASAN && !failed) {
    for (size_t i = 0; i < block.pieces.size(); ++i) {
      if (margins_hold(block.pieces[i])) continue;
      failed = true;
      error = text(*block.threads[0]) + " or another: wrote beside piece " + std::to_string(i) +
              " of shared memory, which has " + std::to_string(block.pieces[i].bytes) + " bytes";
    }
  }
  for (const Piece& piece : block.pieces) std::free(piece.memory);
  if (block.published) Clock::destroy(block.published);
  for (Warp& warp : block.warps) {
    if (active == &warp) active = nullptr;
    if (warp.queued) std::erase(queue, &warp);
  }
  // The stacks that were used last are in the caches.
  for (Thread* thread : block.threads) {
    if (CWK_TSAN) {
      idle.emplace_back(thread);
    } else {
      idle.emplace_front(thread);
    }
  }
}

// --- Launches ------------------------------------------------------------------------------------

// Runs what can run: to the end, or up to the wait for the launch before.
void drive(Launch& launch) {
  while (!failed) {
    while (launch.started < launch.blocks && launch.started - launch.over < launch.resident) {
      start_block(launch);
    }
    current = pick();
    if (!current) break;
    place = &current->place;
    host.switch_to(current->fiber);
    for (size_t i = 0; i < launch.live.size() && !failed; ++i) {
      Block& block = *launch.live[i];
      if (block.exited < block.threads.size()) continue;
      end_block(block);
      ++launch.over;
      launch.live.erase(launch.live.begin() + static_cast<std::ptrdiff_t>(i--));
    }
  }
}

// No thread can go on: says where one waits, and which one does not come.
std::string deadlock(const Launch& launch) {
  for (const auto& block : launch.live) {
    for (const Warp& warp : block->warps) {
      for (const Meeting& meeting : warp.meetings) {
        const int missing = first_lane(meeting.mask & ~meeting.arrived);
        return text(*warp.lanes[first_lane(meeting.arrived)]) + ": waits in " + text(meeting) +
               ", and lane " + std::to_string(missing) + " never arrives";
      }
    }
    for (const Warp& warp : block->warps) {
      if (warp.at_barrier == 0) continue;
      return text(*warp.lanes[first_lane(warp.at_barrier)]) + ": waits in sync_block at " +
             text(block->barrier_site) + ", and not all threads arrive";
    }
  }
  return text(launch) + ": no thread can go on";
}

void abandon(Launch& launch) {
  for (const auto& block : launch.live) end_block(*block);
  launch.live.clear();
}

// The launch that is under way, to its end.
int finish_pending() {
  if (!pending) return 0;
  Launch& launch = *pending;
  if (!failed) {
    publish(&launch.start);
    launch.released = true;
    for (Thread* thread : launch.waiting) make_ready(*thread->warp, thread->bit());
    drive(launch);
    if (!failed && launch.over != launch.blocks) {
      failed = true;
      error = deadlock(launch);
    }
    observe(&launch.end);
  }
  abandon(launch);
  pending.reset();
  const int result = failed ? kLaunchFailure : 0;
  return result;
}

struct Limits {
  size_t block_shared, processor_shared;
  int processor_threads;
};

Limits limits() {
  constexpr size_t kilo = 1024;
  switch (device.capability) {
    case 80: return {163 * kilo, 164 * kilo, 2048};
    case 86:
    case 89:
    case 120: return {99 * kilo, 100 * kilo, 1536};
    default: return {227 * kilo, 228 * kilo, 2048};
  }
}

int refuse(int code, const std::string& what) {
  error = what;
  return code;
}

int check(const Call& call, const std::string& who) {
  if (call.threads < 1 || call.threads > 1024) {
    return refuse(kInvalidConfiguration, who + ": " + std::to_string(call.threads) +
                                             " threads in a block, and 1 to 1024 are allowed");
  }
  constexpr int64_t most[3] = {0x7fffffff, 65535, 65535};
  for (int d = 0; d < 3; ++d) {
    if (call.grid[d] >= 1 && call.grid[d] <= most[d]) continue;
    return refuse(kInvalidConfiguration, who + ": grid." + "xyz"[d] + " is " +
                                             std::to_string(call.grid[d]) + ", and 1 to " +
                                             std::to_string(most[d]) + " are allowed");
  }
  if (call.shared > most_shared_bytes()) {
    return refuse(kInvalidValue, who + ": " + std::to_string(call.shared) +
                                     " bytes of shared memory in a block, and sm_" +
                                     std::to_string(device.capability) + " has " +
                                     std::to_string(most_shared_bytes()));
  }
  return 0;
}

}  // namespace

void configure(const Settings& settings) {
  synchronize();
  device = settings;
  random_state = settings.seed * 2 + 1;
  launched = 0;
}

const Settings& settings() { return device; }
size_t most_shared_bytes() { return limits().block_shared; }
int64_t launches() { return launched; }

int enqueue(const Call& call, Site site) {
  const Unseen unseen;
  auto launch = std::make_unique<Launch>();
  launch->call = call;
  launch->site = site;
  const auto* params = static_cast<const unsigned char*>(call.params);
  launch->params.assign(params, params + call.params_bytes);
  launch->call.params = launch->params.data();
  if (const int code = check(call, text(*launch))) return code;
  ++launched;
  launch->blocks = call.grid[0] * call.grid[1] * call.grid[2];
  const Limits most = limits();
  const auto by_shared = static_cast<int64_t>(most.processor_shared / (call.shared + 1024));
  const int64_t by_threads = most.processor_threads / call.threads;
  const int64_t a_processor = std::max<int64_t>(1, std::min({by_shared, by_threads, int64_t{32}}));
  launch->resident = std::max<int64_t>(
      1, std::min<int64_t>(device.processors * a_processor, kMostThreads / call.threads));
  launch->stride = 1;
  launch->offset = 0;
  if (device.seed != 0) {
    launch->offset = static_cast<int64_t>(draw()) % launch->blocks;
    do {
      launch->stride = static_cast<int64_t>(draw() % 65536) % launch->blocks + 1;
    } while (std::gcd(launch->stride, launch->blocks) != 1);
  }
  // With programmatic launch its blocks start before the launch before has run.
  if (device.capability >= 90) drive(*launch);
  const int code = finish_pending();
  pending = std::move(launch);
  if (code != 0 || device.capability < 90) return std::max(code, synchronize());
  return 0;
}

int synchronize() {
  const Unseen unseen;
  const int code = finish_pending();
  queue.clear();
  active = nullptr;
  failed = false;
  return code;
}

std::string take_error() { return std::exchange(error, {}); }

// --- Called by kernels ---------------------------------------------------------------------------

// What these threads wrote before their fences may now be published by a ticket of any thread.
static void pass_fences(Block& block, const Warp* warp, unsigned mask) {
  if (!CWK_TSAN || block.fenced.empty()) return;
  void* running = Clock::of_the_running();
  if (!block.published) block.published = Clock::fresh();
  Clock::switch_to(block.published);
  std::erase_if(block.fenced, [&](Thread* thread) {
    const bool passes = !warp || (thread->warp == warp && (mask & thread->bit()));
    if (passes) observe(&thread->order);
    return passes;
  });
  Clock::switch_to(running);
}

static Meeting& open_meeting(Warp& warp, Act act, unsigned mask, const Site& site) {
  const Thread& self = *current;
  for (Meeting& meeting : warp.meetings) {
    if (meeting.act == act && meeting.mask == mask) return meeting;
    if ((meeting.mask & self.bit()) && (meeting.arrived & mask)) {
      fail("arrives at " + text(Meeting{act, mask, 0, site}) + ", and lane " +
           std::to_string(first_lane(meeting.arrived & mask)) + " waits in " + text(meeting));
    }
  }
  const unsigned never = mask & (warp.exited | warp.at_barrier);
  if (never) {
    fail("arrives at " + text(Meeting{act, mask, 0, site}) + ", and lane " +
         std::to_string(first_lane(never)) +
         (never & -never & warp.exited ? " has exited" : " waits in sync_block"));
  }
  warp.meetings.push_back({act, mask, 0, site});
  return warp.meetings.back();
}

void meet(Act act, unsigned mask, void* with, Site site) {
  const Unseen unseen;
  Thread& self = *current;
  Warp& warp = *self.warp;
  const unsigned named = mask;
  mask &= warp.exist;
  if (!(mask & self.bit())) fail(text(Meeting{act, named, 0, site}) + " does not name this lane");
  if (act >= Act::mma_tf32 && mask != ~0u)
    fail(text(Meeting{act, named, 0, site}) + " needs 32 lanes");
  Meeting& meeting = open_meeting(warp, act, mask, site);
  if (meeting.arrived & self.bit()) std::abort();
  meeting.arrived |= self.bit();
  self.with = with;
  char* order = nullptr;
  if (act == Act::sync_warp) {  // the others put no memory in order
    const int first = first_lane(mask);
    order = &warp.order[warp.parity[first] % 2][first];
    publish(order);
  }
  if (meeting.arrived == mask) {
    void* brought[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      brought[lane] = mask >> lane & 1 ? warp.lanes[lane]->with : nullptr;
    }
    if (order) {
      ++warp.parity[first_lane(mask)];
      pass_fences(*self.block, &warp, mask);
    } else {
      act_together(act, mask, brought);
    }
    warp.meetings.erase(warp.meetings.begin() + (&meeting - warp.meetings.data()));
    make_ready(warp, mask & ~self.bit());
    if (device.seed != 0 && draw() % 4 == 0) pause();
  } else {
    yield();
  }
  if (order) observe(order);
}

void sync_block(Site site) {
  const Unseen unseen;
  Thread& self = *current;
  Block& block = *self.block;
  Warp& warp = *self.warp;
  for (const Meeting& meeting : warp.meetings) {
    if (!(meeting.mask & self.bit())) continue;
    fail("arrives at sync_block at " + text(site) + ", and others wait for it in " + text(meeting));
  }
  if (block.exited != 0)
    fail("arrives at sync_block at " + text(site) + ", and others have exited");
  char* order = &block.order[block.barriers % 2];
  block.barrier_site = site;
  publish(order);
  if (++block.arrived == block.threads.size()) {
    block.arrived = 0;
    ++block.barriers;
    pass_fences(block, nullptr, 0);
    for (Warp& other : block.warps) {
      make_ready(other, other.at_barrier);
      other.at_barrier = 0;
    }
    pause();
  } else {
    warp.at_barrier |= self.bit();
    yield();
  }
  observe(order);
}

void fence() {
  const Unseen unseen;
  if (CWK_TSAN) {
    publish(&current->order);
    current->fenced = true;
    current->block->fenced.push_back(current);
  }
  pause();
}

void wait_for_previous(Site) {
  const Unseen unseen;
  Thread& self = *current;
  Launch& launch = *self.block->launch;
  if (!launch.released) {
    launch.waiting.push_back(&self);
    yield();
  }
  self.waited = true;
  observe(&launch.start);
}

void offer_ticket(unsigned* counter) {
  const Unseen unseen;
  Thread& self = *current;
  if (!self.waited) fail("takes a ticket before wait_for_previous");
  if (!CWK_TSAN) return;
  Block& block = *self.block;
  if (!block.published) block.published = Clock::fresh();
  void* running = Clock::of_the_running();
  Clock::switch_to(block.published);
  if (self.fenced) observe(&self.order);
  publish(counter);
  Clock::switch_to(running);
}

void accept_ticket(unsigned* counter) {
  const Unseen unseen;
  observe(counter);
  pause();
}

void* take_shared(int number, size_t bytes, size_t rounded, Site site) {
  const Unseen unseen;
  Block& block = *current->block;
  if (static_cast<size_t>(number) < block.pieces.size()) {
    const Piece& piece = block.pieces[static_cast<size_t>(number)];
    if (piece.bytes != bytes) {
      fail("takes " + std::to_string(bytes) + " bytes as piece " + std::to_string(number) + " at " +
           text(site) + ", and another thread took " + std::to_string(piece.bytes));
    }
    return piece.memory + kMargin;
  }
  block.shared_used += rounded;
  if (block.shared_used > block.launch->call.shared) {
    fail("takes shared memory up to " + std::to_string(block.shared_used) + " bytes at " +
         text(site) + ", and the launch asked for " + std::to_string(block.launch->call.shared));
  }
  Piece piece{nullptr, bytes, rounded};
  const size_t whole = CWK_ASAN ? bytes : kMargin + rounded + kMargin;
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, whole) != 0) std::abort();
  piece.memory = static_cast<unsigned char*>(memory);
  std::memset(memory, kMarginByte, whole);
  std::memset(piece.memory + kMargin, 0xff, bytes);  // NaN, or -1
  block.pieces.push_back(piece);
  return piece.memory + kMargin;
}

void check_shared(const void* address, size_t bytes, Site site) {
  const Unseen unseen;
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    fail("gives an address at " + text(site) + " that is no multiple of " + std::to_string(bytes));
  }
  for (const Piece& piece : current->block->pieces) {
    const auto at = static_cast<size_t>(static_cast<const unsigned char*>(address) - piece.memory);
    if (at >= kMargin && at + bytes <= kMargin + piece.bytes) return;
  }
  fail("gives an address at " + text(site) + " that is not in the block's shared memory");
}

void begin_copy(const Copy& copy, Site site) {
  const Unseen unseen;
  if (!current->waited) fail("copies at " + text(site) + " before wait_for_previous");
  if (reinterpret_cast<uintptr_t>(copy.from) % static_cast<uintptr_t>(copy.bytes) != 0) {
    fail("copies at " + text(site) + " from an address that is no multiple of " +
         std::to_string(copy.bytes));
  }
  current->copies.push_back(copy);
  ++current->uncommitted;
}

void commit_copies() {
  const Unseen unseen;
  current->groups.push_back(current->uncommitted);
  current->uncommitted = 0;
}

bool next_copy(int wanted, Copy& copy) {
  const Unseen unseen;
  Thread& self = *current;
  while (self.groups.size() > static_cast<size_t>(wanted)) {
    if (self.groups.front() == 0) {
      self.groups.erase(self.groups.begin());
      continue;
    }
    --self.groups.front();
    copy = self.copies[self.first_copy++];
    if (self.first_copy == self.copies.size()) {
      self.copies.clear();
      self.first_copy = 0;
    }
    return true;
  }
  return false;
}

}  // namespace cwkernels::emulator
