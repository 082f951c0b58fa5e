// The way between packed KV and columns in which a channel's tokens stand side by side, keys turned back to position 0 or to their own.
//
// Channel `head · head_size + dim` of a section's heads. Turns are f32 [cos | sin][half][turn_stride] of positions from 0 on, made by the host,
// whose sines differ from a device's in their last place. Half-split rotation as in rotate_and_store.cu.
// Grid: x over tiles of 32 tokens, y over heads, z over sections; through shared memory, so that both sides are met in whole lines.

#include "codec.cuh"

constexpr uint32_t COLUMN_TOKENS = 32, COLUMN_STRIDE = COLUMN_TOKENS + 1, COLUMN_THREADS = 128;

struct ColumnsParams {
  const CodecSection* sections;
  uint8_t* packed;
  const float* turns;
  const float* centres;  // [channels of all groups]: what the token at position 0, which travels apart, is coded as.
  const uint8_t* first;  // Decoding: elements of position 0, see CodecSection.
  float* columns;
  uint32_t* is_infinite; // [sections]: raised where a number is not finite.
  CodecSlots slots;
  uint32_t head_size;
  uint32_t kv_head_count;
  uint32_t half;
  uint32_t turn_stride;
  uint32_t dtype;
};

struct FirstTokensParams {
  const CodecSection* sections;
  const uint8_t* packed;
  uint8_t* first;
  uint32_t head_size;
  uint32_t dtype;
};

__device__ __forceinline__ bool is_key(const ColumnsParams& p, uint32_t head) { return head / p.kv_head_count % 2 == 0; }

/// Cosine and sine of a frequency at a position.
__device__ __forceinline__ float2 turn_of(const ColumnsParams& p, uint32_t frequency, uint32_t position) {
  const float* at = p.turns + static_cast<uint64_t>(frequency) * p.turn_stride + position;
  return float2{at[0], at[static_cast<uint64_t>(p.half) * p.turn_stride]};
}

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS) columns_from_packed(ColumnsParams p) {
  DYNAMIC_SHARED(shared_bytes);
  auto* tile = reinterpret_cast<float*>(shared_bytes);  // [head_size][COLUMN_STRIDE]
  const CodecSection s = p.sections[blockIdx.z];
  const uint32_t first = blockIdx.x * COLUMN_TOKENS, head = blockIdx.y, size = p.head_size;
  if (first >= s.token_count || head >= s.head_count) return;
  bool is_finite = true;
  for (uint32_t i = threadIdx.x; i < size * COLUMN_TOKENS; i += COLUMN_THREADS) {
    const uint32_t dim = i % size, token = i / size;
    float x = 0.0f;
    if (first + token < s.token_count) {
      const uint64_t at = (static_cast<uint64_t>(head) * s.token_count + first + token) * size + dim;
      x = float_of_bits(load_bits(p.packed + s.packed, at, p.dtype), p.dtype);
    }
    is_finite &= x - x == 0.0f;
    tile[dim * COLUMN_STRIDE + token] = x;
  }
  if (!is_finite) atomicMax(&p.is_infinite[blockIdx.z], 1u);
  __syncthreads();
  const uint32_t turned = is_key(p, head) ? p.half : 0;
  const uint64_t channel = static_cast<uint64_t>(head) * size;
  float* columns = p.columns + (static_cast<uint64_t>(blockIdx.z) * p.slots.axes + channel) * p.slots.stride + first;
  for (uint32_t i = threadIdx.x; i < size * COLUMN_TOKENS; i += COLUMN_THREADS) {
    const uint32_t dim = i / COLUMN_TOKENS, token = i % COLUMN_TOKENS, position = s.token_begin + first + token;
    if (first + token >= padded_tokens(s)) continue;
    float x = tile[dim * COLUMN_STRIDE + token];
    if (dim < 2 * turned && first + token < s.token_count) {
      const float2 turn = turn_of(p, dim % turned, position);
      if (dim < turned) {
        const float b = tile[(dim + turned) * COLUMN_STRIDE + token];
        x = __fmaf_rn(x, turn.x, __fmul_rn(b, turn.y));
      } else {
        const float a = tile[(dim - turned) * COLUMN_STRIDE + token];
        x = __fmaf_rn(x, turn.x, __fsub_rn(0.0f, __fmul_rn(a, turn.y)));
      }
    }
    if (position == 0) x = p.centres[s.channel_begin + channel + dim];
    columns[static_cast<uint64_t>(dim) * p.slots.stride + token] = x;
  }
}
EXPORT_KERNEL(columns_from_packed);

/// Elements of the first token of each head, one after the other. Grid: x over heads, y over sections.
extern "C" __global__ void __launch_bounds__(COLUMN_THREADS) first_tokens(FirstTokensParams p) {
  const CodecSection s = p.sections[blockIdx.y];
  const uint32_t head = blockIdx.x;
  if (head >= s.head_count) return;
  for (uint32_t dim = threadIdx.x; dim < p.head_size; dim += COLUMN_THREADS) {
    const uint32_t bits = load_bits(p.packed + s.packed, static_cast<uint64_t>(head) * s.token_count * p.head_size + dim, p.dtype);
    store_bits(p.first + s.first, static_cast<uint64_t>(head) * p.head_size + dim, bits, p.dtype);
  }
}
EXPORT_KERNEL(first_tokens);

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS) packed_from_columns(ColumnsParams p) {
  DYNAMIC_SHARED(shared_bytes);
  auto* tile = reinterpret_cast<float*>(shared_bytes);
  const CodecSection s = p.sections[blockIdx.z];
  const uint32_t first = blockIdx.x * COLUMN_TOKENS, head = blockIdx.y, size = p.head_size;
  if (first >= s.token_count || head >= s.head_count) return;
  const uint64_t channel = static_cast<uint64_t>(head) * size;
  const float* columns = p.columns + (static_cast<uint64_t>(blockIdx.z) * p.slots.axes + channel) * p.slots.stride + first;
  const uint32_t turned = is_key(p, head) ? p.half : 0, tokens = min(COLUMN_TOKENS, s.token_count - first);
  for (uint32_t i = threadIdx.x; i < size * COLUMN_TOKENS; i += COLUMN_THREADS) {
    const uint32_t dim = i / COLUMN_TOKENS, token = i % COLUMN_TOKENS;
    if (token >= tokens || (dim >= turned && dim < 2 * turned)) continue;
    const float x = columns[static_cast<uint64_t>(dim) * p.slots.stride + token];
    float* to = tile + dim * COLUMN_STRIDE + token;
    if (dim >= turned) {
      *to = x;
      continue;
    }
    const float b = columns[static_cast<uint64_t>(dim + turned) * p.slots.stride + token];
    const float2 turn = turn_of(p, dim, s.token_begin + first + token);
    *to = __fmaf_rn(x, turn.x, __fsub_rn(0.0f, __fmul_rn(b, turn.y)));
    to[turned * COLUMN_STRIDE] = __fmaf_rn(b, turn.x, __fmul_rn(x, turn.y));
  }
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < size * tokens; i += COLUMN_THREADS) {
    const uint32_t dim = i % size, token = i / size;
    uint32_t bits = bits_of_float(tile[dim * COLUMN_STRIDE + token], p.dtype);
    if (s.first != NONE && first + token == 0) bits = load_bits(p.first + s.first, channel + dim, p.dtype);
    store_bits(p.packed + s.packed, (static_cast<uint64_t>(head) * s.token_count + first + token) * size + dim, bits, p.dtype);
  }
}
EXPORT_KERNEL(packed_from_columns);
