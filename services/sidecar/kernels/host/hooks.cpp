// What the compiler calls before each access to memory in code compiled with `-fsanitize=thread`.

#include "machine.h"

namespace {
inline void on(void* address, size_t bytes, bool is_write) {
  if (simt::current != nullptr) simt::machine->access(reinterpret_cast<uintptr_t>(address), bytes, is_write);
}
void on_range(void* address, size_t bytes, bool is_write) {
  // No one access has such a size: a struct is copied by its words.
  const auto begin = reinterpret_cast<uintptr_t>(address);
  const size_t word = (begin | bytes) % 4 == 0 ? 4 : (begin | bytes) % 2 == 0 ? 2 : 1;
  for (size_t at = 0; at < bytes; at += word) on(reinterpret_cast<void*>(begin + at), word, is_write);
}
}  // namespace

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
#define HOOKS(bytes)                                                                    \
  void __tsan_read##bytes(void* address) { on(address, bytes, false); }                 \
  void __tsan_write##bytes(void* address) { on(address, bytes, true); }                 \
  void __tsan_unaligned_read##bytes(void* address) { on(address, bytes, false); }       \
  void __tsan_unaligned_write##bytes(void* address) { on(address, bytes, true); }       \
  void __tsan_volatile_read##bytes(void* address) { on(address, bytes, false); }        \
  void __tsan_volatile_write##bytes(void* address) { on(address, bytes, true); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* address, size_t bytes) { on_range(address, bytes, false); }
void __tsan_write_range(void* address, size_t bytes) { on_range(address, bytes, true); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
// Called by clang, and by gcc for what it does not expand itself.
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  on_range(const_cast<void*>(from), bytes, false);
  on_range(to, bytes, true);
  return std::memcpy(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
  on_range(to, bytes, true);
  return std::memset(to, value, bytes);
}
}
