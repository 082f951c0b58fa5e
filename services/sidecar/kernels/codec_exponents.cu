// The lossless level: exponents of each channel become symbols, counted from the channel's base; the rest of an element stays where it is and
// is read from there when the payload is put together (codec_payload.cu).
//
// A section is one layer; axis `head · head_size + dim`. An exponent outside its channel's window is symbol 0 and an exception, in the order
// head, token, dim. Grid: x over tiles of 64 tokens, y over heads, z over sections, so that rows of elements are read and columns of symbols
// written whole, through shared memory.

#include "codec.cuh"

constexpr uint32_t TILE_TOKENS = 64, TILE_WORDS = TILE_TOKENS / 4, TILE_STRIDE = TILE_WORDS + 1, EXPONENT_THREADS = 128;

struct ExponentsParams {
  const CodecSection* sections;
  uint8_t* packed;
  const uint32_t* windows;  // [axes of all layers]: base | count << 8
  uint8_t* high;
  uint32_t* counts;         // [sections][counts_each]: exceptions of each token of each head, then how many come before.
  uint32_t* beyond;
  const uint8_t* payload;
  CodecSlots slots;
  uint32_t head_size;
  uint32_t dtype;
  uint32_t counts_each;
  uint32_t beyond_max;
};

__device__ __forceinline__ uint32_t exponent_of(uint32_t bits, uint32_t dtype) {
  if (dtype == CODEC_F16) return bits >> 10 & 31;
  return dtype == CODEC_F32 ? bits >> 23 & 255 : bits >> 7 & 255;
}

/// The exponent counted from the base, as a byte: what lies below wraps around and is outside too.
__device__ __forceinline__ uint32_t symbol_of(uint32_t exponent, uint32_t window) { return (exponent - window) & 255; }

extern "C" __global__ void __launch_bounds__(EXPONENT_THREADS) split_exponents(ExponentsParams p) {
  DYNAMIC_SHARED(shared_bytes);
  auto* tile = reinterpret_cast<uint32_t*>(shared_bytes);  // [head_size][TILE_STRIDE]
  STATIC_SHARED(uint32_t, unknown, TILE_TOKENS);
  const CodecSection s = p.sections[blockIdx.z];
  const uint32_t first = blockIdx.x * TILE_TOKENS, head = blockIdx.y, size = p.head_size;
  if (first >= s.token_count || head >= s.head_count) return;
  for (uint32_t i = threadIdx.x; i < TILE_TOKENS; i += EXPONENT_THREADS) unknown[i] = 0;
  __syncthreads();
  const uint8_t* elements = p.packed + s.packed;
  const uint32_t* windows = p.windows + s.axis_begin + head * size;
  for (uint32_t i = threadIdx.x; i < size * TILE_WORDS; i += EXPONENT_THREADS) {
    const uint32_t dim = i % size, word = i / size, window = windows[dim];
    uint32_t symbols = 0;
#pragma unroll
    for (uint32_t j = 0; j < 4; j++) {
      const uint32_t token = first + word * 4 + j;
      if (token >= s.token_count) break;
      const uint64_t at = (static_cast<uint64_t>(head) * s.token_count + token) * size + dim;
      const uint32_t symbol = symbol_of(exponent_of(load_bits(elements, at, p.dtype), p.dtype), window);
      if (symbol < window >> 8) {
        symbols |= symbol << 8 * j;
      } else {
        atomicAdd(&unknown[word * 4 + j], 1u);
      }
    }
    tile[dim * TILE_STRIDE + word] = symbols;
  }
  __syncthreads();
  auto* high = reinterpret_cast<uint32_t*>(p.high + static_cast<uint64_t>(blockIdx.z) * p.slots.axes * p.slots.stride);
  for (uint32_t i = threadIdx.x; i < size * TILE_WORDS; i += EXPONENT_THREADS) {
    const uint32_t dim = i / TILE_WORDS, word = i % TILE_WORDS, token = first + word * 4;
    const uint64_t row = static_cast<uint64_t>(head * size + dim) * p.slots.stride;
    if (token < padded_tokens(s)) high[(row + token) / 4] = tile[dim * TILE_STRIDE + word];
  }
  uint32_t* counts = p.counts + static_cast<uint64_t>(blockIdx.z) * p.counts_each + head * s.token_count;
  for (uint32_t i = threadIdx.x; i < TILE_TOKENS && first + i < s.token_count; i += EXPONENT_THREADS) counts[first + i] = unknown[i];
}
EXPORT_KERNEL(split_exponents);

/// Writes the exceptions to where counting said. Grid: x over groups of four tokens, y over heads, z over sections; one warp a token.
extern "C" __global__ void __launch_bounds__(EXPONENT_THREADS) exponents_beyond(ExponentsParams p) {
  const CodecSection s = p.sections[blockIdx.z];
  const uint32_t lane = threadIdx.x % WARP_SIZE, token = blockIdx.x * 4 + threadIdx.x / WARP_SIZE, head = blockIdx.y;
  if (token >= s.token_count || head >= s.head_count) return;
  const uint32_t* counts = p.counts + static_cast<uint64_t>(blockIdx.z) * p.counts_each + head * s.token_count + token;
  // One more count than there are tokens: the sum of all.
  uint32_t at = counts[0];
  if (counts[1] == at) return;
  const uint32_t size = p.head_size;
  const uint32_t* windows = p.windows + s.axis_begin + head * size;
  auto* beyond = reinterpret_cast<uint2*>(p.beyond) + static_cast<uint64_t>(blockIdx.z) * p.beyond_max;
  for (uint32_t first = 0; first < size; first += WARP_SIZE) {
    const uint32_t dim = first + lane;
    uint32_t exponent = 0;
    bool is_beyond = false;
    if (dim < size) {
      const uint64_t element = (static_cast<uint64_t>(head) * s.token_count + token) * size + dim;
      exponent = exponent_of(load_bits(p.packed + s.packed, element, p.dtype), p.dtype);
      is_beyond = symbol_of(exponent, windows[dim]) >= windows[dim] >> 8;
    }
    const unsigned all = __ballot_sync(ALL_LANES, is_beyond);
    const uint32_t place = at + __popc(all & ((1u << lane) - 1));
    if (is_beyond && place < p.beyond_max) beyond[place] = uint2{token | (head * size + dim) << 16, exponent};
    at += __popc(all);
  }
}
EXPORT_KERNEL(exponents_beyond);

/// Puts elements together from symbols and the rest, which lies in the payload behind the stream. Grid as split_exponents.
extern "C" __global__ void __launch_bounds__(EXPONENT_THREADS) join_exponents(ExponentsParams p) {
  DYNAMIC_SHARED(shared_bytes);
  auto* tile = reinterpret_cast<uint32_t*>(shared_bytes);
  const CodecSection s = p.sections[blockIdx.z];
  const uint32_t first = blockIdx.x * TILE_TOKENS, head = blockIdx.y, size = p.head_size;
  if (first >= s.token_count || head >= s.head_count) return;
  const auto* high = reinterpret_cast<const uint32_t*>(p.high + static_cast<uint64_t>(blockIdx.z) * p.slots.axes * p.slots.stride);
  for (uint32_t i = threadIdx.x; i < size * TILE_WORDS; i += EXPONENT_THREADS) {
    const uint32_t dim = i / TILE_WORDS, word = i % TILE_WORDS, token = first + word * 4;
    const uint64_t row = static_cast<uint64_t>(head * size + dim) * p.slots.stride;
    if (token < padded_tokens(s)) tile[dim * TILE_STRIDE + word] = high[(row + token) / 4];
  }
  __syncthreads();
  const uint64_t elements = static_cast<uint64_t>(s.head_count) * s.token_count * size;
  const uint8_t* rest = p.payload + s.tail;
  const uint32_t* windows = p.windows + s.axis_begin + head * size;
  for (uint32_t i = threadIdx.x; i < size * TILE_TOKENS; i += EXPONENT_THREADS) {
    const uint32_t dim = i % size, in_tile = i / size, token = first + in_tile;
    if (token >= s.token_count) break;
    const uint64_t at = (static_cast<uint64_t>(head) * s.token_count + token) * size + dim;
    const uint32_t exponent = ((tile[dim * TILE_STRIDE + in_tile / 4] >> in_tile % 4 * 8) + windows[dim]) & 255;
    uint32_t bits;
    if (p.dtype == CODEC_BF16) {
      bits = (rest[at] & 0x80u) << 8 | exponent << 7 | (rest[at] & 0x7fu);
    } else if (p.dtype == CODEC_F16) {
      uint32_t extra = 0;
      const uint64_t plane = (elements + 7) / 8;
      for (uint32_t bit = 0; bit < 3; bit++) extra |= (rest[elements + bit * plane + at / 8] >> at % 8 & 1u) << bit;
      bits = (extra & 4) << 13 | (exponent & 31) << 10 | (extra & 3) << 8 | rest[at];
    } else {
      const uint8_t* bytes = rest + 3 * at;
      bits = (bytes[2] & 0x80u) << 24 | exponent << 23 | (bytes[2] & 0x7fu) << 16 | static_cast<uint32_t>(bytes[1]) << 8 | bytes[0];
    }
    store_bits(p.packed + s.packed, at, bits, p.dtype);
  }
}
EXPORT_KERNEL(join_exponents);

struct SetExponentsParams {
  const CodecSection* sections;
  const CodecException* exceptions;  // No place twice.
  uint8_t* packed;
  uint32_t count;
  uint32_t head_size;
  uint32_t dtype;
};

/// Replaces the exponents of exceptions. Grid: x over 128 of them.
extern "C" __global__ void __launch_bounds__(EXPONENT_THREADS) set_exponents(SetExponentsParams p) {
  const uint32_t index = blockIdx.x * EXPONENT_THREADS + threadIdx.x;
  if (index >= p.count) return;
  const CodecException one = p.exceptions[index];
  const CodecSection s = p.sections[one.section];
  const uint32_t head = one.axis / p.head_size, dim = one.axis % p.head_size, exponent = static_cast<uint32_t>(one.steps) & 255;
  const uint64_t at = (static_cast<uint64_t>(head) * s.token_count + one.token) * p.head_size + dim;
  uint8_t* elements = p.packed + s.packed;
  const uint32_t bits = load_bits(elements, at, p.dtype);
  const uint32_t shift = p.dtype == CODEC_F16 ? 10 : p.dtype == CODEC_F32 ? 23 : 7, mask = (p.dtype == CODEC_F16 ? 31u : 255u) << shift;
  store_bits(elements, at, (bits & ~mask) | (exponent << shift & mask), p.dtype);
}
EXPORT_KERNEL(set_exponents);
