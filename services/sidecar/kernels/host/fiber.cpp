#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace simt {

namespace {
constexpr size_t STACK_BYTES = 128 << 10;
constexpr size_t PAGE = 4096;
}  // namespace

#if defined(__x86_64__)
// Saves what the System V ABI lets a function count on; the signal mask, which makes swapcontext a system call, never changes.
asm(R"(
.text
.globl kvasir_simt_switch
.hidden kvasir_simt_switch
.type kvasir_simt_switch, @function
kvasir_simt_switch:
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
.size kvasir_simt_switch, .-kvasir_simt_switch
)");
constexpr size_t ENTRY = 6;
constexpr size_t FRAME_WORDS = 8;  // Registers, entry, and a word that leaves the stack as a call would.
#elif defined(__aarch64__)
asm(R"(
.text
.globl kvasir_simt_switch
.hidden kvasir_simt_switch
.type kvasir_simt_switch, @function
kvasir_simt_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size kvasir_simt_switch, .-kvasir_simt_switch
)");
constexpr size_t ENTRY = 11;
constexpr size_t FRAME_WORDS = 20;
#else
#error "the SIMT layer switches stacks on x86-64 and arm64 only"
#endif

extern "C" void kvasir_simt_switch(void** save, void* load);

void Fiber::start(void* stack_end, void (*body)()) {
  auto* frame = static_cast<uint64_t*>(stack_end) - FRAME_WORDS;
  for (size_t i = 0; i < FRAME_WORDS; i++) frame[i] = 0;
  frame[ENTRY] = reinterpret_cast<uint64_t>(body);
  stack_pointer_ = frame;
}

void Fiber::enter(Fiber& from) { kvasir_simt_switch(&from.stack_pointer_, stack_pointer_); }

Stacks::~Stacks() {
  for (char* stack : stacks_) munmap(stack, STACK_BYTES + PAGE);
}

void* Stacks::end_of(size_t index) {
  while (stacks_.size() <= index) {
    void* stack = mmap(nullptr, STACK_BYTES + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED || mprotect(stack, PAGE, PROT_NONE) != 0) {
      std::fputs("the system refused memory for the stacks of a block's threads\n", stderr);
      std::abort();
    }
    stacks_.push_back(static_cast<char*>(stack));
  }
  return stacks_[index] + PAGE + STACK_BYTES;
}

}  // namespace simt
