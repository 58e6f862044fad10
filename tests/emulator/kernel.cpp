#include <cstdlib>
#include <cstring>
#include <utility>

#include "state.h"

namespace cwkernels::emulator {

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
         std::to_string(first_lane(never)) + " has exited or waits in sync_block");
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
  const bool whole = act < Act::mma_tf32 || mask == ~0u;
  if (!whole) fail(text(Meeting{act, named, 0, site}) + " needs 32 lanes");
  Meeting& meeting = open_meeting(warp, act, mask, site);
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
  const bool all = block.exited == 0;
  if (!all) fail("arrives at sync_block at " + text(site) + ", and others have exited");
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

void wait_for_previous() {
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
  current->copies.all.push_back(copy);
  ++current->copies.uncommitted;
}

void commit_copies() {
  const Unseen unseen;
  Copies& copies = current->copies;
  copies.groups.push_back(std::exchange(copies.uncommitted, 0));
}

bool next_copy(int wanted, Copy& copy) {
  const Unseen unseen;
  Copies& copies = current->copies;
  while (copies.groups.size() > static_cast<size_t>(wanted)) {
    if (copies.groups.front() == 0) {
      copies.groups.erase(copies.groups.begin());
      continue;
    }
    --copies.groups.front();
    copy = copies.all[copies.first++];
    if (copies.first == copies.all.size()) {
      copies.all.clear();
      copies.first = 0;
    }
    return true;
  }
  return false;
}

}  // namespace cwkernels::emulator
