// The state of one simulated device; the kernels see only simt.h.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "fiber.h"
#include "simt.h"

namespace simt {

/// What is known of two bytes of memory. Intervals number the stretches between the barriers of one block, over all blocks and launches.
struct Cell {
  uint32_t write_interval, read_interval;
  uint16_t writer, reader;
  uint16_t write_sync, read_sync;  // How often the accessing thread's warp had synchronised in that interval.
  uint8_t state;                   // State.
  uint8_t was_read_by_other_block; // In the launch that `read_interval` is of.
  uint16_t padding;
};
enum State : uint8_t { OUTSIDE, UNWRITTEN, WRITTEN };

/// Readers and writers of a cell that are no single thread.
enum : uint16_t { MANY = 0xffff, ATOMIC = 0xfffe, WARP = 0x8000 /* + the warp's number: several threads of it */ };

/// Memory whose every access is checked.
class CheckedMemory {
 public:
  CheckedMemory(size_t bytes, const char* name);
  ~CheckedMemory();
  CheckedMemory(const CheckedMemory&) = delete;

  bool contains(uintptr_t address) const { return address - base_ < bytes_; }
  Cell* cell(uintptr_t address) { return cells_ + (address - base_) / 2; }
  uintptr_t base() const { return base_; }
  size_t size() const { return bytes_; }
  const char* name() const { return name_; }
  /// Bytes that may be accessed from now on, holding what nobody wrote.
  void open(uintptr_t address, size_t bytes, uint64_t seed);
  /// Bytes that may no longer be accessed.
  void close(uintptr_t address, size_t bytes);

 private:
  uintptr_t base_;
  size_t bytes_;
  Cell* cells_;
  const char* name_;
};

struct AsyncCopy {
  void* shared;
  const void* global;
  bool is_valid;
  Where where;
};

/// One thread of the block that runs.
struct Thread {
  Coordinates coordinates;
  Fiber fiber;
  uint16_t index;
  uint16_t warp;
  bool has_exited;
  const char* waits_for;  // For messages; null while it can run.
  Where waits_at;
  std::vector<std::vector<AsyncCopy>> copies;  // By commit; the last is open.
};

/// Lanes of a warp that wait for each other.
struct Rendezvous {
  unsigned mask, arrived, left;
  const char* kind;
  Where where;
  bool is_done;
  uint64_t in[32][5];
  uint64_t out[32][2];
};

struct Warp {
  std::vector<Rendezvous*> open;
  uint16_t syncs;
};

struct Machine {
  explicit Machine(size_t bytes);

  CheckedMemory global;
  CheckedMemory shared;
  std::map<uintptr_t, size_t> buffers;

  // The launch that runs.
  uint32_t launch_interval = 1, block_interval = 1, interval = 1;
  uint64_t random = 1;
  void (*kernel)(const void*) = nullptr;
  const void* parameters = nullptr;
  size_t shared_used = 0, dynamic_bytes = 0;
  std::map<std::pair<const char*, unsigned>, void*> statics;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<uint16_t> runnable;
  unsigned at_barrier = 0, exited = 0;
  Where barrier_where;
  Fiber scheduler;
  Stacks stacks;
  std::vector<Rendezvous*> spare;
  std::string report;
  bool is_aborted = false;

  uint64_t next_random();
  /// Runs all blocks; the report says what was found, and is empty when nothing was.
  void launch(dim3 grid, dim3 block, size_t dynamic_shared_bytes);
  void run_block(dim3 block_index, dim3 grid, dim3 block);
  /// Leaves the thread until `waits_for` is null again.
  void wait(Thread& thread, const char* what, Where where);
  void wake(Thread& thread);
  /// Ends the launch with a message; returns only outside a launch.
  void fail(const std::string& message);
  /// Checks an access of the thread that runs, and remembers it.
  void access(uintptr_t address, size_t bytes, bool is_write, bool is_atomic = false);
};

extern thread_local Machine* machine;
extern thread_local Thread* current;

std::string text_of(Where where);

struct KernelEntry {
  size_t parameter_bytes;
  void (*run)(const void*);
};
std::map<std::string, KernelEntry>& kernels();

}  // namespace simt
