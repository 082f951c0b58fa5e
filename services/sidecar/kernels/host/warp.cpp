// Lanes of a warp meet: shuffles, votes, barriers of a warp, matrix fragments, and a lane's asynchronous copies.

#include "machine.h"

namespace simt {

namespace {

/// Brings the lanes of `mask` together at one place; `complete` runs once, when the last one has come. `release` gives the meeting back.
template <typename Deposit, typename Complete>
Rendezvous& meet(unsigned mask, const char* kind, Where where, Deposit deposit, Complete complete) {
  Machine& m = *machine;
  Warp& warp = m.warps[current->warp];
  const unsigned own = 1u << lane();
  if ((mask & own) == 0) m.fail(std::string(kind) + " at " + text_of(where) + " by a lane that its mask leaves out");
  const size_t first = current->warp * 32;
  for (size_t i = 0; i < 32; i++) {
    if ((mask >> i & 1) == 0) continue;
    if (first + i >= m.threads.size() || m.threads[first + i].has_exited)
      m.fail(std::string(kind) + " at " + text_of(where) + " names lane " + std::to_string(i) + ", which has ended");
  }
  Rendezvous* found = nullptr;
  for (Rendezvous* open : warp.open) {
    if (open->is_done || (open->mask & mask) == 0) continue;
    if (open->mask != mask || open->kind != kind || open->where.line() != where.line())
      m.fail("divergent warp: " + std::string(open->kind) + " at " + text_of(open->where) + " and " + kind + " at " +
             text_of(where) + " for the same lanes");
    found = open;
  }
  if (found == nullptr) {
    if (m.spare.empty()) m.spare.push_back(new Rendezvous);
    found = m.spare.back();
    m.spare.pop_back();
    found->mask = mask;
    found->arrived = found->left = 0;
    found->kind = kind;
    found->where = where;
    found->is_done = false;
    warp.open.push_back(found);
  }
  deposit(found->in[lane()]);
  found->arrived |= own;
  if (found->arrived != mask) {
    m.wait(*current, kind, where);
    return *found;
  }
  complete(*found);
  found->is_done = true;
  for (size_t i = 0; i < 32; i++) {
    if ((mask >> i & 1) != 0 && first + i != current->index) m.wake(m.threads[first + i]);
  }
  return *found;
}

void release(Rendezvous& meeting) {
  meeting.left |= 1u << lane();
  if (meeting.left != meeting.mask) return;
  auto& open = machine->warps[current->warp].open;
  std::erase(open, &meeting);
  machine->spare.push_back(&meeting);
}

float from_bf16(uint64_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits & 0xffff) << 16); }

/// Element `[row][column]` of a 16 x 16 matrix in the lanes' registers (PTX ISA, "Matrix Fragments for mma.m16n8k16").
float a_at(const Rendezvous& meeting, int row, int column) {
  const int lane = row % 8 * 4 + column % 8 / 2, word = row / 8 + column / 8 * 2;
  return from_bf16(meeting.in[lane][word / 2] >> (word % 2 * 32 + column % 2 * 16));
}

float b_at(const Rendezvous& meeting, int row, int column) {
  const int lane = column * 4 + row % 8 / 2;
  return from_bf16(meeting.in[lane][2] >> (row / 8 * 32 + row % 2 * 16));
}

void multiply(Rendezvous& meeting) {
  float b[16][8];
  for (int k = 0; k < 16; k++)
    for (int column = 0; column < 8; column++) b[k][column] = b_at(meeting, k, column);
  for (int row = 0; row < 16; row++) {
    float a[16];
    for (int k = 0; k < 16; k++) a[k] = a_at(meeting, row, k);
    for (int column = 0; column < 8; column++) {
      const int lane = row % 8 * 4 + column / 2, half = row / 8, shift = column % 2 * 32;
      float sum = std::bit_cast<float>(static_cast<uint32_t>(meeting.in[lane][3 + half] >> shift));
      for (int k = 0; k < 16; k++) sum = std::fma(a[k], b[k][column], sum);
      uint64_t& out = meeting.out[lane][half];
      out = (out & ~(0xffffffffull << shift)) | uint64_t{std::bit_cast<uint32_t>(sum)} << shift;
    }
  }
}

/// The same for bytes and m16n8k32: element `[row][k]` of a and `[k][column]` of b.
void multiply_bytes(Rendezvous& meeting) {
  const auto byte = [&](int lane, int word, int k) {
    return static_cast<uint8_t>(meeting.in[lane][word / 2] >> (word % 2 * 32 + k % 4 * 8));
  };
  for (int row = 0; row < 16; row++) {
    for (int column = 0; column < 8; column++) {
      const int lane = row % 8 * 4 + column / 2, half = row / 8, shift = column % 2 * 32;
      auto sum = static_cast<int32_t>(static_cast<uint32_t>(meeting.in[lane][3 + half] >> shift));
      for (int k = 0; k < 32; k++) {
        const int a = static_cast<int8_t>(byte(row % 8 * 4 + k % 16 / 4, row / 8 + k / 16 * 2, k));
        sum += a * byte(column * 4 + k % 16 / 4, 4 + k / 16, k);
      }
      uint64_t& out = meeting.out[lane][half];
      out = (out & ~(0xffffffffull << shift)) | uint64_t{static_cast<uint32_t>(sum)} << shift;
    }
  }
}

}  // namespace

int lane() { return current->index % 32; }

void exchange(unsigned mask, uint64_t value, Exchange& all, Where where) {
  Rendezvous& meeting =
      meet(mask, "a shuffle or vote", where, [&](uint64_t* in) { in[0] = value; }, [](Rendezvous&) {});
  // A lane outside the mask has no value: what a shuffle from it gives is undefined.
  for (int i = 0; i < 32; i++) all.value[i] = (mask >> i & 1) != 0 ? meeting.in[i][0] : 0xfff8deadfff8dead;
  release(meeting);
}

void warp_barrier(unsigned mask, Where where) {
  Rendezvous& meeting = meet(
      mask, "a barrier of the warp", where, [](uint64_t*) {},
      [](Rendezvous& meeting) {
        // Some lanes alone say nothing about the others, so that only a whole warp's barrier counts.
        if (meeting.mask == ~0u) machine->warps[current->warp].syncs++;
      });
  release(meeting);
}

/// A product of fragments; both kinds have four words of a, two of b and four of the sum.
template <typename Sum>
static void product(Sum (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2], Where where, void (*complete)(Rendezvous&)) {
  const auto deposit = [&](uint64_t* in) {
    std::memcpy(in, a, 16);
    std::memcpy(in + 2, b, 8);
    std::memcpy(in + 3, sum, 16);
  };
  Rendezvous& meeting = meet(~0u, "a matrix product", where, deposit, complete);
  std::memcpy(sum, meeting.out[lane()], 16);
  release(meeting);
}

void mma_bf16(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2], Where where) {
  product(sum, a, b, where, multiply);
}
void mma_s8u8(int (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2], Where where) {
  product(sum, a, b, where, multiply_bytes);
}

void load_matrices(unsigned (&out)[4], const void* row, bool transposed, Where where) {
  const auto address = reinterpret_cast<uintptr_t>(row);
  if (!machine->shared.contains(address)) machine->fail("a matrix row outside shared memory at " + text_of(where));
  machine->access(address, 16, false);
  const auto deposit = [&](uint64_t* in) { std::memcpy(in, row, 16); };
  Rendezvous& meeting = meet(~0u, "a load of matrices", where, deposit, [](Rendezvous&) {});
  const auto element = [&](int matrix, int row, int column) {
    return static_cast<uint16_t>(meeting.in[matrix * 8 + row][column / 4] >> column % 4 * 16);
  };
  const int major = lane() / 4, minor = lane() % 4 * 2;
  for (int i = 0; i < 4; i++) {
    const uint16_t low = transposed ? element(i, minor, major) : element(i, major, minor);
    const uint16_t high = transposed ? element(i, minor + 1, major) : element(i, major, minor + 1);
    out[i] = low | static_cast<unsigned>(high) << 16;
  }
  release(meeting);
}

void async_copy(void* shared, const void* global, bool is_valid, Where where) {
  const auto to = reinterpret_cast<uintptr_t>(shared);
  if (!machine->shared.contains(to)) machine->fail("an asynchronous copy to outside shared memory at " + text_of(where));
  if (is_valid) machine->access(reinterpret_cast<uintptr_t>(global), 16, false);
  machine->access(to, 16, true);
  // Until the copy is waited for, its bytes may be old or new: whoever reads them reads what was never written.
  std::memset(shared, 0xff, 16);
  for (int i = 0; i < 8; i++) machine->shared.cell(to)[i].state = UNWRITTEN;
  current->copies.back().push_back({shared, global, is_valid, where});
}

void async_commit() { current->copies.emplace_back(); }

void async_wait(int groups_left) {
  auto& groups = current->copies;
  while (groups.size() > static_cast<size_t>(groups_left) + 1) {
    for (const AsyncCopy& copy : groups.front()) {
      machine->access(reinterpret_cast<uintptr_t>(copy.shared), 16, true);
      if (copy.is_valid) {
        std::memcpy(copy.shared, copy.global, 16);
      } else {
        std::memset(copy.shared, 0, 16);
      }
    }
    groups.erase(groups.begin());
  }
}

template <typename T, typename Change>
static T atomic(T* at, Change change) {
  machine->access(reinterpret_cast<uintptr_t>(at), sizeof(T), true, true);
  const T before = *at;
  *at = change(before);
  return before;
}

uint32_t atomic_add(uint32_t* at, uint32_t value) {
  return atomic(at, [=](uint32_t before) { return before + value; });
}
uint64_t atomic_add(uint64_t* at, uint64_t value) {
  return atomic(at, [=](uint64_t before) { return before + value; });
}
uint32_t atomic_max(uint32_t* at, uint32_t value) {
  return atomic(at, [=](uint32_t before) { return before < value ? value : before; });
}

}  // namespace simt
