// The simulated device as its users see it: buffers, transfers, launches by name. Called from Rust.

#include <algorithm>

#include "machine.h"

using simt::Machine;

namespace {

constexpr size_t GUARD = 512;
constexpr size_t ALIGNMENT = 256;  // As the driver's allocations.
constexpr uint8_t GUARD_BYTE = 0xa5;

size_t room(size_t bytes) { return (bytes + GUARD + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

int answer(const std::string& text, char* message, size_t capacity) {
  if (capacity > 0) {
    const size_t length = std::min(text.size(), capacity - 1);
    std::memcpy(message, text.data(), length);
    message[length] = 0;
  }
  return text.empty() ? 0 : 1;
}

/// Where a buffer that `address` and the following bytes lie in ends; 0 when there is none.
uintptr_t end_of_buffer(const Machine& device, uintptr_t address) {
  auto next = device.buffers.upper_bound(address);
  if (next == device.buffers.begin()) return 0;
  const auto& [begin, bytes] = *std::prev(next);
  return begin + bytes;
}

/// Says which buffer has bytes after its end that something wrote without being seen.
std::string broken_guard(const Machine& device) {
  for (const auto& [begin, bytes] : device.buffers) {
    const auto* guard = reinterpret_cast<const uint8_t*>(begin + bytes);
    for (size_t i = 0; i < GUARD; i++) {
      if (guard[i] != GUARD_BYTE)
        return "byte " + std::to_string(i) + " after a buffer of " + std::to_string(bytes) + " bytes was overwritten";
    }
  }
  return {};
}

}  // namespace

extern "C" {

Machine* kvasir_simt_new(size_t bytes) { return new Machine((bytes + 4095) / 4096 * 4096); }

void kvasir_simt_free(Machine* device) {
  for (simt::Rendezvous* spare : device->spare) delete spare;
  delete device;
}

/// First fit between the buffers there are; 0 when nothing is large enough.
uint64_t kvasir_simt_allocate(Machine* device, size_t bytes) {
  uintptr_t at = device->global.base() + ALIGNMENT;
  for (const auto& [begin, length] : device->buffers) {
    if (at + room(bytes) <= begin) break;
    at = (begin + room(length) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  }
  if (at + room(bytes) > device->global.base() + device->global.size()) return 0;
  device->global.open(at, bytes, device->next_random());
  std::memset(reinterpret_cast<void*>(at + bytes), GUARD_BYTE, GUARD);
  device->buffers[at] = bytes;
  return at;
}

void kvasir_simt_release(Machine* device, uint64_t address) {
  auto found = device->buffers.find(address);
  if (found == device->buffers.end()) return;
  device->global.close(address, found->second);
  device->buffers.erase(found);
}

/// Bytes that buffers take, guards included.
size_t kvasir_simt_taken(const Machine* device) {
  size_t taken = 0;
  for (const auto& [begin, bytes] : device->buffers) taken += room(bytes);
  return taken;
}

int kvasir_simt_write(Machine* device, uint64_t address, const void* from, size_t bytes) {
  if (address + bytes > end_of_buffer(*device, address)) return 1;
  std::memcpy(reinterpret_cast<void*>(address), from, bytes);
  for (size_t i = 0; i < (bytes + 1) / 2; i++) device->global.cell(address + 2 * i)->state = simt::WRITTEN;
  return 0;
}

/// Copies out what was written; where nothing was, answers with 2 + the first such byte.
uint64_t kvasir_simt_read(Machine* device, uint64_t address, void* to, size_t bytes) {
  if (address + bytes > end_of_buffer(*device, address)) return 1;
  for (size_t i = 0; i < bytes; i += 2) {
    if (device->global.cell(address + i)->state != simt::WRITTEN) return 2 + i;
  }
  std::memcpy(to, reinterpret_cast<const void*>(address), bytes);
  return 0;
}

/// The same without the check: what was never written comes as the poison it is.
int kvasir_simt_peek(Machine* device, uint64_t address, void* to, size_t bytes) {
  if (address + bytes > end_of_buffer(*device, address)) return 1;
  std::memcpy(to, reinterpret_cast<const void*>(address), bytes);
  return 0;
}

/// Copies between buffers, with what is known of each cell: what was never written is not written at the other place either.
int kvasir_simt_copy(Machine* device, uint64_t from, uint64_t to, size_t bytes) {
  if (from % 2 != 0 || to % 2 != 0 || bytes % 2 != 0) return 1;
  if (from + bytes > end_of_buffer(*device, from) || to + bytes > end_of_buffer(*device, to)) return 1;
  std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
  for (size_t i = 0; i < bytes; i += 2) device->global.cell(to + i)->state = device->global.cell(from + i)->state;
  return 0;
}

/// Makes a buffer's bytes what they were before anything was written: a copy to them is under way.
int kvasir_simt_forget(Machine* device, uint64_t address, size_t bytes) {
  if (address % 2 != 0 || address + bytes > end_of_buffer(*device, address)) return 1;
  for (size_t i = 0; i < bytes; i += 2) device->global.cell(address + i)->state = simt::UNWRITTEN;
  return 0;
}

int kvasir_simt_launch(Machine* device, const char* name, const unsigned grid[3], const unsigned block[3],
                       size_t shared_bytes, const void* parameters, size_t parameter_bytes, uint64_t seed,
                       char* message, size_t capacity) {
  const auto found = simt::kernels().find(name);
  if (found == simt::kernels().end()) return answer("there is no kernel " + std::string(name), message, capacity);
  if (found->second.parameter_bytes != parameter_bytes) {
    return answer(std::string(name) + " takes parameters of " + std::to_string(found->second.parameter_bytes) +
                      " bytes, not " + std::to_string(parameter_bytes),
                  message, capacity);
  }
  device->kernel = found->second.run;
  device->parameters = parameters;
  device->random = seed;
  device->launch({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared_bytes);
  std::string report = device->report.empty() ? broken_guard(*device) : device->report;
  if (!report.empty()) report = std::string(name) + ": " + report;
  return answer(report, message, capacity);
}

/// Whether a kernel of this name is linked in.
int kvasir_simt_has_kernel(const char* name) { return simt::kernels().contains(name); }
}
