// Entropy coding of symbols by static tables: 64 interleaved states, two a lane of one warp; the stream is that of the CPU's coder
// (crates/kernels/src/coding/rans.rs, which names the sources).
//
// A lane holds one entry of the row's table, and what a symbol or a slot needs is fetched by shuffles. A lane codes the tokens `2 · lane` and
// `2 · lane + 1` of each 64, so that it writes both symbols at once; words go in the order of tokens, by the votes of who gives or takes one.
// Grid: x over sections, one warp each: a state waits for the one before it, so that only many sections keep a device busy.

#include "codec.cuh"

constexpr uint32_t RANS_BITS = 15, RANS_STATE_MIN = 1u << 16, RANS_LANES = 64;

struct RansEncodeParams {
  const CodecSection* sections;
  const uint32_t* tables;  // [axes of all groups][32]: first slot | frequency << 16
  const uint8_t* high;
  uint16_t* words;         // [sections][axes · stride], filled from the end.
  uint32_t* words_begin;   // [sections]
  uint32_t* states;        // [sections][64]
  CodecSlots slots;
};

extern "C" __global__ void __launch_bounds__(WARP_SIZE) rans_encode(RansEncodeParams p) {
  const uint32_t lane = threadIdx.x, lanes_below = (1u << lane) - 1;
  const CodecSection s = p.sections[blockIdx.x];
  const uint64_t slot = static_cast<uint64_t>(blockIdx.x) * p.slots.axes * p.slots.stride;
  const uint8_t* high = p.high + slot;
  uint16_t* words = p.words + slot;
  const uint32_t* tables = p.tables + static_cast<uint64_t>(s.axis_begin) * WARP_SIZE + lane;
  uint32_t states[2] = {RANS_STATE_MIN, RANS_STATE_MIN}, at = p.slots.axes * p.slots.stride;
  uint32_t next_entry = tables[static_cast<uint64_t>(s.axis_count - 1) * WARP_SIZE];
  for (uint32_t row = s.axis_count; row-- > 0;) {
    const uint32_t entry = next_entry;
    if (row > 0) next_entry = tables[static_cast<uint64_t>(row - 1) * WARP_SIZE];
    for (uint32_t group = (s.token_count + RANS_LANES - 1) / RANS_LANES; group-- > 0;) {
      const uint32_t token = group * RANS_LANES + 2 * lane;
      const uint32_t pair =
          token < s.token_count ? *reinterpret_cast<const uint16_t*>(high + static_cast<uint64_t>(row) * p.slots.stride + token) : 0;
      uint32_t own[2];
      bool gives[2];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        own[i] = __shfl_sync(ALL_LANES, entry, pair >> 8 * i & 31);
        gives[i] = token + i < s.token_count && states[i] >> (32 - RANS_BITS) >= own[i] >> 16;
      }
      const unsigned first = __ballot_sync(ALL_LANES, gives[0]), second = __ballot_sync(ALL_LANES, gives[1]);
      at -= __popc(first) + __popc(second);
      uint32_t place = at + __popc(first & lanes_below) + __popc(second & lanes_below);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        if (gives[i]) {
          words[place++] = static_cast<uint16_t>(states[i]);
          states[i] >>= 16;
        }
        // Every symbol that quantising makes has a frequency; a profile is checked for that.
        const uint32_t frequency = max(own[i] >> 16, 1u);
        if (token + i < s.token_count)
          states[i] = (states[i] / frequency << RANS_BITS) + states[i] % frequency + (own[i] & 0xffff);
      }
    }
  }
  if (lane == 0) p.words_begin[blockIdx.x] = at;
#pragma unroll
  for (int i = 0; i < 2; i++) p.states[blockIdx.x * RANS_LANES + 2 * lane + i] = states[i];
}
EXPORT_KERNEL(rans_encode);

struct RansDecodeParams {
  const CodecSection* sections;
  const uint32_t* tables;
  const uint8_t* payload;
  uint8_t* high;
  uint32_t* is_damaged;  // [sections]; the symbols are then of no use.
  CodecSlots slots;
};

extern "C" __global__ void __launch_bounds__(WARP_SIZE) rans_decode(RansDecodeParams p) {
  const uint32_t lane = threadIdx.x, lanes_below = (1u << lane) - 1;
  const CodecSection s = p.sections[blockIdx.x];
  uint8_t* high = p.high + static_cast<uint64_t>(blockIdx.x) * p.slots.axes * p.slots.stride;
  const uint8_t* from = p.payload + s.stream;
  const uint32_t state_count = min(s.token_count, RANS_LANES), word_count = (s.stream_bytes - 4 * state_count) / 2;
  uint32_t states[2] = {RANS_STATE_MIN, RANS_STATE_MIN}, at = 0;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const uint8_t* bytes = from + 4 * (2 * lane + i);
    if (2 * lane + i < state_count) states[i] = bytes[0] | bytes[1] << 8 | bytes[2] << 16 | static_cast<uint32_t>(bytes[3]) << 24;
  }
  from += 4 * state_count;
  const uint32_t* tables = p.tables + static_cast<uint64_t>(s.axis_begin) * WARP_SIZE + lane;
  uint32_t next_entry = tables[0];
  for (uint32_t row = 0; row < s.axis_count; row++) {
    const uint32_t entry = next_entry;
    if (row + 1 < s.axis_count) next_entry = tables[static_cast<uint64_t>(row + 1) * WARP_SIZE];
    for (uint32_t token = 2 * lane; token - 2 * lane < s.token_count; token += RANS_LANES) {
      uint32_t pair = 0;
      bool takes[2];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const uint32_t slot = states[i] & ((1u << RANS_BITS) - 1);
        uint32_t symbol = 0;
#pragma unroll
        for (uint32_t step = 16; step > 0; step /= 2) {
          if ((__shfl_sync(ALL_LANES, entry, symbol + step) & 0xffff) <= slot) symbol += step;
        }
        const uint32_t own = __shfl_sync(ALL_LANES, entry, symbol);
        const bool is_coded = token + i < s.token_count;
        if (is_coded) {
          states[i] = (own >> 16) * (states[i] >> RANS_BITS) + slot - (own & 0xffff);
          pair |= symbol << 8 * i;
        }
        takes[i] = is_coded && states[i] < RANS_STATE_MIN;
      }
      const unsigned first = __ballot_sync(ALL_LANES, takes[0]), second = __ballot_sync(ALL_LANES, takes[1]);
      uint32_t place = at + __popc(first & lanes_below) + __popc(second & lanes_below);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        if (!takes[i]) continue;
        // Beyond a damaged stream's end lie zeros, and its symbols are of no use.
        const uint8_t* word = from + 2 * static_cast<uint64_t>(place);
        states[i] = states[i] << 16 | (place < word_count ? word[0] | word[1] << 8 : 0);
        place++;
      }
      at += __popc(first) + __popc(second);
      if (token < padded_tokens(s))
        *reinterpret_cast<uint16_t*>(high + static_cast<uint64_t>(row) * p.slots.stride + token) = static_cast<uint16_t>(pair);
    }
  }
  const bool is_whole = states[0] == RANS_STATE_MIN && states[1] == RANS_STATE_MIN && 4 * state_count + 2 * at == s.stream_bytes;
  const bool are_whole = __all_sync(ALL_LANES, is_whole);
  if (lane == 0) p.is_damaged[blockIdx.x] = !are_whole;
}
EXPORT_KERNEL(rans_decode);
