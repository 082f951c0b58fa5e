// Which bytes exist, which were written, and who met whom on them without a barrier between.

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#include "machine.h"

namespace simt {

namespace {

uintptr_t reserve(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    std::fprintf(stderr, "the system refused %zu bytes for the simulated device\n", bytes);
    std::abort();
  }
  return reinterpret_cast<uintptr_t>(memory);
}

std::string thread_name(uint16_t thread) {
  if (thread == MANY) return "several threads";
  if (thread == ATOMIC) return "an atomic operation";
  if (thread & WARP) return "several threads of warp " + std::to_string(thread & 0xff);
  return "thread " + std::to_string(thread);
}

}  // namespace

CheckedMemory::CheckedMemory(size_t bytes, const char* name) : base_(reserve(bytes)), bytes_(bytes), name_(name) {
  cells_ = reinterpret_cast<Cell*>(reserve(bytes / 2 * sizeof(Cell)));
}

CheckedMemory::~CheckedMemory() {
  munmap(reinterpret_cast<void*>(base_), bytes_);
  munmap(cells_, bytes_ / 2 * sizeof(Cell));
}

void CheckedMemory::open(uintptr_t address, size_t bytes, uint64_t seed) {
  // NaN in every float format, and as an index far outside of everything.
  std::memset(reinterpret_cast<void*>(address), 0xff, bytes);
  auto* words = reinterpret_cast<uint16_t*>(address);
  for (size_t i = 0; i < bytes / 2; i += 7) words[i] = static_cast<uint16_t>(0xff80 | (seed >> i % 8));
  for (size_t i = 0; i < (bytes + 1) / 2; i++) cell(address)[i] = Cell{.state = UNWRITTEN};
}

void CheckedMemory::close(uintptr_t address, size_t bytes) {
  for (size_t i = 0; i < (bytes + 1) / 2; i++) cell(address)[i].state = OUTSIDE;
}

void Machine::access(uintptr_t address, size_t bytes, bool is_write, bool is_atomic) {
  if (current == nullptr) return;
  CheckedMemory* memory = global.contains(address) ? &global : shared.contains(address) ? &shared : nullptr;
  if (memory == nullptr) {
    if (address < 1 << 16) fail("access to address " + std::to_string(address) + ", close to null");
    return;  // The thread's own stack, or constants.
  }
  const auto complain = [&](const std::string& what) {
    uintptr_t begin = memory->base();
    if (memory == &global) {
      auto next = buffers.upper_bound(address);
      begin = next == buffers.begin() ? begin : std::prev(next)->first;
    }
    fail(what + ": " + (is_atomic ? "atomic" : is_write ? "write" : "read") + " of " + std::to_string(bytes) +
         " bytes at byte " + std::to_string(address - begin) + " of " + memory->name());
  };
  if (address % bytes != 0) return complain("misaligned");
  const auto thread = current->index;
  const uint16_t syncs = warps[current->warp].syncs, own_warp = WARP | current->warp;
  const auto same_warp_later = [&](uint16_t other, uint16_t other_sync) {
    const uint16_t warp = other == MANY || other == ATOMIC ? 0xffff : other & WARP ? other & 0xff : other / 32;
    return warp == current->warp && other_sync < syncs;
  };
  Cell* cells = memory->cell(address);
  for (size_t i = 0; i < (bytes + 1) / 2; i++) {
    Cell& cell = cells[i];
    if (cell.state == OUTSIDE) return complain("out of bounds");
    const bool reads = !is_write || is_atomic;
    if (reads && cell.state == UNWRITTEN) return complain("never written");
    const bool written_before = cell.write_interval >= launch_interval;
    if (written_before && !(is_atomic && cell.writer == ATOMIC)) {
      if (cell.write_interval < block_interval) return complain("race with another block");
      if (cell.write_interval == interval && cell.writer != thread && !same_warp_later(cell.writer, cell.write_sync))
        return complain("race with a write of " + thread_name(cell.writer));
    }
    if (is_write && cell.read_interval >= launch_interval && !is_atomic) {
      if (cell.read_interval < block_interval || cell.was_read_by_other_block)
        return complain("race with a read of another block");
      if (cell.read_interval == interval && cell.reader != thread && !same_warp_later(cell.reader, cell.read_sync))
        return complain("race with a read of " + thread_name(cell.reader));
    }
    if (is_write) {
      cell.state = WRITTEN;
      cell.write_interval = interval;
      cell.writer = is_atomic ? static_cast<uint16_t>(ATOMIC) : thread;
      cell.write_sync = syncs;
      continue;
    }
    if (cell.read_interval == interval) {
      if (cell.reader != thread) {
        const bool of_own_warp = cell.reader == own_warp || (cell.reader < WARP && cell.reader / 32 == current->warp);
        cell.reader = of_own_warp ? own_warp : static_cast<uint16_t>(MANY);
      }
    } else {
      cell.was_read_by_other_block =
          cell.read_interval >= launch_interval && (cell.was_read_by_other_block || cell.read_interval < block_interval);
      cell.read_interval = interval;
      cell.reader = thread;
    }
    cell.read_sync = syncs;
  }
}

}  // namespace simt
