#include <algorithm>
#include <cstdlib>
#include <deque>
#include <numeric>
#include <utility>

#include "state.h"

namespace cwkernels::emulator {
namespace {

constexpr int kInvalidValue = 1, kInvalidConfiguration = 9, kLaunchFailure = 719;  // cudaError_t
// Of CUDA threads that live at a time.
constexpr int kMostThreads = CWK_TSAN ? 1024 : 4096;
// A fiber that is used again is in order with its last thread, as ThreadSanitizer sees it, and a
// new one costs half a millisecond. So many are used before the first is used again.
constexpr size_t kLeastFibers = CWK_TSAN ? 1024 : 0;

int64_t launched = 0;
std::deque<std::unique_ptr<Thread>> idle;
size_t fibers = 0;
std::unique_ptr<Launch> pending;

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
  // The host starts the next block.
  return ++block.exited < block.threads.size() ? next_fiber() : host_fiber();
}

void run_thread() {
  const Call& call = current->block->launch->call;
  call.run(call.kernel, call.params);
  Fiber& self = current->fiber;
  self.switch_to(end_of_thread(), true);
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
  const auto part = [](int64_t value) { return static_cast<unsigned>(value); };
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
    thread->copies = {};
    thread->waited = thread->fenced = false;
    thread->fiber.restart();
    thread->warp->lanes[thread->lane] = thread;
    thread->warp->exist |= thread->bit();
    block.threads.push_back(thread);
  }
  for (Warp& warp : block.warps) make_ready(warp, warp.exist);
}

// What a write beside a piece has left there, if AddressSanitizer does not look.
bool margins_hold(const Piece& piece) {
  const auto hold = [&](size_t begin, size_t end) {
    return std::all_of(piece.memory + begin, piece.memory + end,
                       [](unsigned char byte) { return byte == kMarginByte; });
  };
  return hold(0, kMargin) && hold(kMargin + piece.bytes, kMargin + piece.rounded + kMargin);
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
  for (Warp& warp : block.warps) forget(warp);
  // The stacks that were used last are in the caches.
  for (Thread* thread : block.threads) {
    idle.emplace(CWK_TSAN ? idle.end() : idle.begin(), thread);
  }
}

// --- Launches ------------------------------------------------------------------------------------

// Runs what can run: to the end, or up to the wait for the launch before.
void drive(Launch& launch) {
  while (!failed) {
    while (launch.started < launch.blocks && launch.started - launch.over < launch.resident) {
      start_block(launch);
    }
    Fiber& next = next_fiber();
    if (!current) break;
    host.switch_to(next);
    for (size_t i = 0; i < launch.live.size() && !failed; ++i) {
      Block& block = *launch.live[i];
      if (block.exited < block.threads.size()) continue;
      end_block(block);
      ++launch.over;
      launch.live.erase(launch.live.begin() + static_cast<std::ptrdiff_t>(i--));
    }
  }
}

// No thread can go on: says where one waits, and which lane does not come. Other reasons are seen
// when a thread arrives or exits.
std::string deadlock(const Launch& launch) {
  for (const auto& block : launch.live) {
    for (const Warp& warp : block->warps) {
      for (const Meeting& meeting : warp.meetings) {
        const int missing = first_lane(meeting.mask & ~meeting.arrived);
        return text(*warp.lanes[first_lane(meeting.arrived)]) + ": waits in " + text(meeting) +
               ", and lane " + std::to_string(missing) + " never arrives";
      }
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
  return failed ? kLaunchFailure : 0;
}

struct Limits {
  size_t block_shared, processor_shared;
  int processor_threads;
};

Limits limits() {
  switch (device.capability) {
    case 80: return {163 << 10, 164 << 10, 2048};
    case 86:
    case 89:
    case 120: return {99 << 10, 100 << 10, 1536};
    default: return {227 << 10, 228 << 10, 2048};
  }
}

// Says what is too large or too small; 0 if nothing is.
int refuse(int code, const std::string& what, int64_t got, int64_t most) {
  if (got >= (code == kInvalidValue ? 0 : 1) && got <= most) return 0;
  error = what + ": wanted at most " + std::to_string(most) + ", got " + std::to_string(got);
  return code;
}

int check(const Call& call, const std::string& who) {
  const auto shared = static_cast<int64_t>(call.shared);
  const auto most_shared = static_cast<int64_t>(most_shared_bytes());
  int code = refuse(kInvalidConfiguration, who + ": threads in a block", call.threads, 1024);
  if (!code) code = refuse(kInvalidConfiguration, who + ": grid.x", call.grid[0], 0x7fffffff);
  if (!code) code = refuse(kInvalidConfiguration, who + ": grid.y", call.grid[1], 65535);
  if (!code) code = refuse(kInvalidConfiguration, who + ": grid.z", call.grid[2], 65535);
  if (!code) code = refuse(kInvalidValue, who + ": bytes of shared memory", shared, most_shared);
  return code;
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
  const auto by_shared = static_cast<int64_t>(limits().processor_shared / (call.shared + 1024));
  const int64_t by_threads = limits().processor_threads / call.threads;
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
  failed = false;
  return code;
}

std::string take_error() { return std::exchange(error, {}); }

}  // namespace cwkernels::emulator
