#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "sanitizers.h"

namespace cwkernels::emulator {

// AddressSanitizer makes frames several times as large; ThreadSanitizer must forget whole stacks.
constexpr size_t kStack = (CWK_ASAN ? 256 : CWK_TSAN ? 32 : 64) * 1024;

#ifdef __x86_64__
// Saves what a call keeps, stores the stack pointer, takes the other one and its registers.
extern "C" void cwk_switch_stacks(void** from, void* to);
asm(R"(
.text
.type cwk_switch_stacks, @function
cwk_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#endif

Fiber* Fiber::previous_ = nullptr;
Fiber* Fiber::running_ = nullptr;

Fiber::Fiber() : clock_(Clock::of_the_running()) {
  Clock::origin();  // made now, before the host has done anything
}

Fiber::Fiber(void (*entry)()) : entry_(entry), stack_bytes_(kStack) {
  const Unseen unseen;
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, stack_bytes_ + page, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::perror("emulator: no stack for a thread"), std::abort();
  mprotect(memory, page, PROT_NONE);  // an overflow faults
  stack_ = static_cast<unsigned char*>(memory) + page;
  bottom_ = stack_;
}

Fiber::~Fiber() {
  if (stack_ == nullptr) return;
  const Unseen unseen;
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  munmap(stack_ - page, stack_bytes_ + page);
  if (clock_) Clock::destroy(clock_);
}

void Fiber::begin() {
  Fiber* self = running_;
  self->arrive();
  self->entry_();
}

void Fiber::restart() {
#if CWK_ASAN
  __asan_unpoison_memory_region(stack_, stack_bytes_);
#endif
#if CWK_TSAN
  // The thread that had the stack before, and this one, are in no order.
  const Unseen unseen;
  mmap(stack_, stack_bytes_, PROT_READ | PROT_WRITE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (!clock_) clock_ = Clock::fresh();
#endif
#ifdef __x86_64__
  // Six registers, then where to return to; above it the stack is aligned as after a call.
  auto** top = reinterpret_cast<void**>(stack_ + stack_bytes_) - 2;
  top[1] = nullptr;
  top[0] = reinterpret_cast<void*>(&Fiber::begin);
  for (int i = 1; i <= 6; ++i) top[-i] = nullptr;
  context_ = top - 6;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = stack_bytes_;
  context_.uc_link = nullptr;
  makecontext(&context_, &Fiber::begin, 0);
#endif
}

void Fiber::arrive() {
#if CWK_ASAN
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(fake_stack_, &bottom, &bytes);
  // This is how the host's is known. Every other one says what it is.
  previous_->bottom_ = bottom;
  previous_->stack_bytes_ = bytes;
#endif
}

void Fiber::switch_to(Fiber& next, [[maybe_unused]] bool dying) {
  previous_ = this;
  running_ = &next;
#if CWK_ASAN
  __sanitizer_start_switch_fiber(dying ? nullptr : &fake_stack_, next.bottom_, next.stack_bytes_);
#endif
  Clock::switch_to(next.clock_);
#ifdef __x86_64__
  cwk_switch_stacks(&context_, next.context_);
#else
  swapcontext(&context_, &next.context_);
#endif
  arrive();
}

}  // namespace cwkernels::emulator
