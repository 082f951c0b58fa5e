// Runs the blocks of a launch one after another, the threads of a block in an order drawn from the seed.

#include "machine.h"

namespace simt {

thread_local Machine* machine = nullptr;
thread_local Thread* current = nullptr;
thread_local const Coordinates* coordinates = nullptr;

namespace {
constexpr size_t SHARED_BYTES = 227 << 10;  // What a block of compute capability 9.0 can have.

void run_thread() {
  machine->kernel(machine->parameters);
  current->has_exited = true;
  machine->exited++;
  machine->scheduler.enter(current->fiber);
}
}  // namespace

std::map<std::string, KernelEntry>& kernels() {
  static std::map<std::string, KernelEntry> all;
  return all;
}

Registration::Registration(const char* name, size_t parameter_bytes, void (*run)(const void*)) {
  kernels()[name] = {parameter_bytes, run};
}

std::string text_of(Where where) {
  const std::string path = where.file_name();
  return path.substr(path.find_last_of('/') + 1) + ":" + std::to_string(where.line());
}

Machine::Machine(size_t bytes) : global(bytes, "a global buffer"), shared(SHARED_BYTES, "shared memory") {}

uint64_t Machine::next_random() {
  random += 0x9e3779b97f4a7c15;
  uint64_t z = random;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

void Machine::fail(const std::string& message) {
  if (report.empty()) {
    report = message;
    if (current != nullptr) {
      const auto& [thread, block, block_size, grid_size] = current->coordinates;
      report += "; thread " + std::to_string(current->index) + " of block (" + std::to_string(block.x) + ", " +
                std::to_string(block.y) + ", " + std::to_string(block.z) + ")";
    }
  }
  is_aborted = true;
  if (current != nullptr) scheduler.enter(current->fiber);  // Never to return: the kernel holds nothing that needs an end.
}

void Machine::wait(Thread& thread, const char* what, Where where) {
  thread.waits_for = what;
  thread.waits_at = where;
  scheduler.enter(thread.fiber);
}

void Machine::wake(Thread& thread) {
  thread.waits_for = nullptr;
  runnable.push_back(thread.index);
}

void Machine::launch(dim3 grid, dim3 block, size_t dynamic_shared_bytes) {
  report.clear();
  is_aborted = false;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535)
    return fail("a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " + std::to_string(grid.z));
  const uint64_t count = uint64_t{block.x} * block.y * block.z;
  if (count == 0 || count > 1024) return fail("a block of " + std::to_string(count) + " threads");
  dynamic_bytes = dynamic_shared_bytes;
  launch_interval = ++interval;
  machine = this;
  threads.resize(count);
  for (unsigned z = 0; z < grid.z && !is_aborted; z++)
    for (unsigned y = 0; y < grid.y && !is_aborted; y++)
      for (unsigned x = 0; x < grid.x && !is_aborted; x++) run_block({x, y, z}, grid, block);
  for (Warp& warp : warps)
    for (Rendezvous* left : warp.open) spare.push_back(left);
  warps.clear();
  machine = nullptr;
}

void Machine::run_block(dim3 block_index, dim3 grid, dim3 block) {
  block_interval = ++interval;
  statics.clear();
  shared_used = (dynamic_bytes + 15) / 16 * 16;
  shared.close(shared.base(), shared.size());
  if (shared_used > shared.size())
    return fail(std::to_string(dynamic_bytes) + " bytes of shared memory; a block has " + std::to_string(shared.size()));
  if (dynamic_bytes > 0) shared.open(shared.base(), dynamic_bytes, next_random());
  warps.assign((threads.size() + 31) / 32, Warp{});
  runnable.clear();
  at_barrier = exited = 0;
  for (size_t i = 0; i < threads.size(); i++) {
    Thread& thread = threads[i];
    thread.coordinates.thread = {static_cast<unsigned>(i) % block.x, static_cast<unsigned>(i) / block.x % block.y,
                                 static_cast<unsigned>(i) / block.x / block.y};
    thread.coordinates.block = block_index;
    thread.coordinates.block_size = block;
    thread.coordinates.grid_size = grid;
    thread.index = static_cast<uint16_t>(i);
    thread.warp = static_cast<uint16_t>(i / 32);
    thread.has_exited = false;
    thread.waits_for = nullptr;
    thread.copies.assign(1, {});
    thread.fiber.start(stacks.end_of(i), run_thread);
    runnable.push_back(thread.index);
  }
  while (!runnable.empty() && !is_aborted) {
    const size_t pick = next_random() % runnable.size();
    Thread& thread = threads[runnable[pick]];
    runnable[pick] = runnable.back();
    runnable.pop_back();
    current = &thread;
    coordinates = &thread.coordinates;
    thread.fiber.enter(scheduler);
    current = nullptr;
  }
  if (is_aborted) return;
  for (const Thread& thread : threads) {
    if (thread.has_exited) {
      if (thread.copies.size() > 1 || !thread.copies[0].empty())
        fail("thread " + std::to_string(thread.index) + " ended before its asynchronous copies");
      continue;
    }
    return fail("deadlock: thread " + std::to_string(thread.index) + " waits for " + thread.waits_for + " at " +
                text_of(thread.waits_at) + ", and nobody can run");
  }
}

void barrier(Where where) {
  Machine& m = *machine;
  if (m.at_barrier == 0) m.barrier_where = where;
  if (m.barrier_where.line() != where.line() || m.barrier_where.file_name() != where.file_name())
    m.fail("divergent barrier: some threads of the block are at " + text_of(m.barrier_where) + ", others at " +
           text_of(where));
  if (m.exited > 0) m.fail("divergent barrier at " + text_of(where) + ": a thread of the block has ended");
  if (++m.at_barrier < m.threads.size()) {
    m.wait(*current, "a barrier of the block", where);
    return;
  }
  m.at_barrier = 0;
  m.interval++;
  for (Thread& thread : m.threads)
    if (&thread != current) m.wake(thread);
  for (Warp& warp : m.warps) warp.syncs = 0;
  // The last one to arrive is not the first one to go on.
  m.runnable.push_back(current->index);
  m.scheduler.enter(current->fiber);
}

void* dynamic_shared() { return reinterpret_cast<void*>(machine->shared.base()); }

void* static_shared(size_t bytes, size_t alignment, Where where) {
  Machine& m = *machine;
  void*& place = m.statics[{where.file_name(), where.line()}];
  if (place == nullptr) {
    m.shared_used = (m.shared_used + 31) / alignment * alignment;  // With a gap that nobody may touch.
    if (m.shared_used + bytes > m.shared.size()) m.fail("more shared memory than a block has");
    place = reinterpret_cast<void*>(m.shared.base() + m.shared_used);
    m.shared.open(m.shared.base() + m.shared_used, bytes, m.next_random());
    m.shared_used += bytes;
  }
  return place;
}

}  // namespace simt
