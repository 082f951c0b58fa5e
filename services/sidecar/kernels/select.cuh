// Finds a token by its place in the ranking, or by the share of the distribution before it, without sorting.
//
// Radix descent: eight bits of the rank at a time, the mass of each of 256 bins is summed, and the bin in which the target falls is entered.
// Four passes over the row, three more over ids when the rank is shared by several tokens. Masses are integers, so that sums by atomic
// operations do not depend on their order.
#pragma once

#include "reduce.cuh"
#include "weight.cuh"

constexpr uint32_t SAMPLE_THREADS = 512;

struct SelectScratch {
  unsigned long long bins[256];
  unsigned long long remaining;
  uint32_t digit;
  uint32_t ties;
  uint32_t tied_token;
  unsigned long long sums[SAMPLE_THREADS / WARP_SIZE];
  double partial_sums[SAMPLE_THREADS / WARP_SIZE];
};

/// Enters the bin where the running sum passes `target`; the target within it comes back. All threads of the block.
__device__ __forceinline__ uint32_t enter_bin(SelectScratch& s, uint64_t& target) {
  const uint32_t lane = threadIdx.x % WARP_SIZE;
  if (threadIdx.x < WARP_SIZE) {
    uint64_t own = 0;
    for (int i = 0; i < 8; i++) own += s.bins[lane * 8 + i];
    uint64_t through = own;
    for (uint32_t distance = 1; distance < WARP_SIZE; distance *= 2) {
      const uint64_t before = __shfl_up_sync(ALL_LANES, through, distance);
      if (lane >= distance) through += before;
    }
    uint64_t sum = through - own;
    if (sum <= target && target < through) {
      uint32_t digit = lane * 8;
      while (sum + s.bins[digit] <= target) sum += s.bins[digit++];
      s.digit = digit;
      s.remaining = target - sum;
    }
  }
  __syncthreads();
  target = s.remaining;
  const uint32_t digit = s.digit;
  __syncthreads();
  return digit;
}

/// One pass: `visit(token, add)` is called for each token and may call `add(bin, mass)`.
template <typename Visit>
__device__ __forceinline__ uint32_t pass(SelectScratch& s, uint32_t vocab, uint64_t& target, Visit visit) {
  for (uint32_t i = threadIdx.x; i < 256; i += SAMPLE_THREADS) s.bins[i] = 0;
  __syncthreads();
  for (uint32_t token = threadIdx.x; token < vocab; token += SAMPLE_THREADS) {
    visit(token, [&](uint32_t bin, uint64_t mass) {
      if (mass != 0) atomicAdd(&s.bins[bin], static_cast<unsigned long long>(mass));
    });
  }
  __syncthreads();
  return enter_bin(s, target);
}

/// The key of the first token, in the order of keys, at which the sum of `mass(key)` passes `target`, which must be below the sum over all
/// tokens. Tokens of one logit have one mass, or none.
template <typename Mass>
__device__ __forceinline__ uint64_t descend(SelectScratch& s, const float* logits, uint32_t vocab, uint64_t target, Mass mass) {
  uint32_t rank = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    const uint32_t above = shift == 24 ? 0 : rank >> (shift + 8);
    rank |= pass(s, vocab, target,
                 [&](uint32_t token, auto add) {
                   const uint64_t key = key_of(logits[token], token);
                   const uint32_t own = static_cast<uint32_t>(key >> 32);
                   if (shift == 24 || own >> (shift + 8) == above) add(own >> shift & 255, mass(key));
                 })
            << shift;
  }
  if (threadIdx.x == 0) s.ties = 0;
  __syncthreads();
  for (uint32_t token = threadIdx.x; token < vocab; token += SAMPLE_THREADS) {
    const uint64_t key = key_of(logits[token], token);
    if (key >> 32 == rank && mass(key) != 0 && atomicAdd(&s.ties, 1u) == 0) s.tied_token = token;
  }
  __syncthreads();
  const uint32_t ties = s.ties, tied_token = s.tied_token;
  __syncthreads();
  if (ties == 1) return static_cast<uint64_t>(rank) << 32 | tied_token;
  uint32_t id = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    const uint32_t above = shift == 24 ? 0 : id >> (shift + 8);
    id |= pass(s, vocab, target,
               [&](uint32_t token, auto add) {
                 const uint64_t key = key_of(logits[token], token);
                 if (key >> 32 == rank && (shift == 24 || token >> (shift + 8) == above)) add(token >> shift & 255, mass(key));
               })
          << shift;
  }
  return static_cast<uint64_t>(rank) << 32 | id;
}

/// The token at which the sum of `mass(token)` passes `target`, in the order of `order(token)`, 64 bits, then of ids.
template <typename Order, typename Mass>
__device__ __forceinline__ uint32_t descend_by(SelectScratch& s, uint32_t vocab, uint64_t target, Order order, Mass mass) {
  uint64_t place = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {
    const uint64_t above = shift == 56 ? 0 : place >> (shift + 8);
    place |= static_cast<uint64_t>(pass(s, vocab, target,
                                        [&](uint32_t token, auto add) {
                                          const uint64_t own = order(token);
                                          if (shift == 56 || own >> (shift + 8) == above) add(own >> shift & 255, mass(token));
                                        }))
             << shift;
  }
  uint32_t id = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    const uint32_t above = shift == 24 ? 0 : id >> (shift + 8);
    id |= pass(s, vocab, target,
               [&](uint32_t token, auto add) {
                 if ((shift == 24 || token >> (shift + 8) == above) && order(token) == place) add(token >> shift & 255, mass(token));
               })
          << shift;
  }
  return id;
}

/// The smallest key of the row: the most likely token, the lowest id among equals.
__device__ __forceinline__ uint64_t best_key(SelectScratch& s, const float* logits, uint32_t vocab) {
  unsigned long long best = ~0ull;
  for (uint32_t token = threadIdx.x; token < vocab; token += SAMPLE_THREADS)
    best = min(best, static_cast<unsigned long long>(key_of(logits[token], token)));
  for (int distance = 16; distance > 0; distance /= 2) best = min(best, __shfl_xor_sync(ALL_LANES, best, distance));
  if (threadIdx.x % WARP_SIZE == 0) s.sums[threadIdx.x / WARP_SIZE] = best;
  __syncthreads();
  for (uint32_t i = 0; i < SAMPLE_THREADS / WARP_SIZE; i++) best = min(best, s.sums[i]);
  __syncthreads();
  return best;
}

/// The sum of `mass(key)` over the row.
template <typename Mass>
__device__ __forceinline__ uint64_t total_mass(SelectScratch& s, const float* logits, uint32_t vocab, Mass mass) {
  unsigned long long sum = 0;
  for (uint32_t token = threadIdx.x; token < vocab; token += SAMPLE_THREADS) sum += mass(key_of(logits[token], token));
  return block_sum(sum, s.sums);
}
