// XXH3 over stretches of the device's memory, so that a digest of KV needs no copy of it: the eight accumulators of each stretch, which the host
// merges into 128 bits (crates/cuda-codec/src/digest.rs).
//
// A stripe is 64 bytes, a block 16 stripes. Within a block the stripes' contributions add up, whatever was accumulated before; between blocks
// the accumulators are scrambled. So blocks are summed at once, a warp each (xxh3_blocks), and 8 lanes go through the sums of a stretch in
// order and add what follows its last whole block (xxh3_accumulate).
//
// Stretches begin at a multiple of 8 and are longer than 240 bytes, a multiple of 8 too: others follow another formula.
// Source: Collet, XXH3 128 bits, in "xxHash fast digest algorithm", version 0.2.0, inputs of more than 240 bytes, seed 0.

#include "device.cuh"

constexpr uint32_t WORDS = 8;  // Of a stripe.
constexpr uint32_t STRIPES = 16;
constexpr uint32_t BLOCK_WORDS = WORDS * STRIPES;
constexpr uint32_t WARPS = 4;

struct Stretch {
  uint64_t begin;  // In words of 8 bytes.
  uint64_t words;
};

struct Xxh3Params {
  const Stretch* stretches;
  const uint64_t* data;
  uint64_t* sums;          // [stretches][blocks_max][8]
  uint64_t* accumulators;  // [stretches][8]
  uint32_t blocks_max;     // Whole blocks before the end of the longest stretch.
  uint32_t padding;
  uint64_t start[8];       // What accumulators begin with.
  uint64_t secret[24];
  uint64_t last[8];        // The secret as the last stripe takes it.
};

/// Blocks that are whole and not at the very end.
__device__ __forceinline__ uint64_t blocks_of(const Stretch& s) { return (s.words - 1) / BLOCK_WORDS; }

/// What a stripe adds to the accumulator of this lane's word. All lanes of a warp call it.
__device__ __forceinline__ uint64_t contribution(uint64_t data, uint64_t secret) {
  const uint64_t key = data ^ secret;
  return __shfl_xor_sync(ALL_LANES, data, 1) + (key & 0xffffffffu) * (key >> 32);
}

/// Grid: x over blocks, four to a thread block; y over stretches.
extern "C" __global__ void __launch_bounds__(128) xxh3_blocks(Xxh3Params p) {
  const Stretch s = p.stretches[blockIdx.y];
  const uint32_t lane = threadIdx.x % WARP_SIZE, word = lane % WORDS;
  const uint64_t block = blockIdx.x * WARPS + threadIdx.x / WARP_SIZE;
  if (block >= blocks_of(s)) return;
  const uint64_t* data = p.data + s.begin + block * BLOCK_WORDS;
  uint64_t sum = 0;
  for (uint32_t stripe = lane / WORDS; stripe < STRIPES; stripe += WARP_SIZE / WORDS) {
    sum += contribution(data[stripe * WORDS + word], p.secret[stripe + word]);
  }
  sum += __shfl_xor_sync(ALL_LANES, sum, 8);
  sum += __shfl_xor_sync(ALL_LANES, sum, 16);
  if (lane < WORDS) p.sums[(blockIdx.y * static_cast<uint64_t>(p.blocks_max) + block) * WORDS + word] = sum;
}
EXPORT_KERNEL(xxh3_blocks);

/// Grid: x over stretches. A warp of which each eight lanes do the same, so that its collectives are whole.
extern "C" __global__ void __launch_bounds__(32) xxh3_accumulate(Xxh3Params p) {
  const Stretch s = p.stretches[blockIdx.x];
  const uint32_t word = threadIdx.x % WORDS;
  const uint64_t blocks = blocks_of(s);
  const uint64_t* sums = p.sums + blockIdx.x * static_cast<uint64_t>(p.blocks_max) * WORDS;
  uint64_t accumulator = p.start[word];
  for (uint64_t block = 0; block < blocks; block++) {
    accumulator += sums[block * WORDS + word];
    accumulator = (accumulator ^ accumulator >> 47 ^ p.secret[STRIPES + word]) * 0x9e3779b1u;
  }
  const uint64_t* data = p.data + s.begin;
  const uint64_t stripes = (s.words - 1) / WORDS - blocks * STRIPES;
  for (uint64_t stripe = 0; stripe < stripes; stripe++) {
    accumulator += contribution(data[blocks * BLOCK_WORDS + stripe * WORDS + word], p.secret[stripe + word]);
  }
  accumulator += contribution(data[s.words - WORDS + word], p.last[word]);
  if (threadIdx.x < WORDS) p.accumulators[blockIdx.x * WORDS + word] = accumulator;
}
EXPORT_KERNEL(xxh3_accumulate);
