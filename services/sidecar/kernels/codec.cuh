// What the kernels of the KV codec share. The format is crates/codec's: its CPU code writes and reads the same bytes, and every operation on
// floating-point numbers here is one that rounds as it does there, in the same order, with nothing contracted.
//
// A section is the tokens of one chunk in the layers that a level codes together. A launch takes many sections; each has a slot of equal size in
// the buffers between kernels, and its own numbers of tokens and axes, of which those beyond are left alone:
//
//   columns  f32 [sections][axes][stride]      a channel's or an axis's tokens side by side; the stride is a multiple of 16
//   high     u8  [sections][axes][stride]      symbols below 32, for entropy coding
//   low      u8  [sections][lows][stride]      low bits of axes that have more symbols
//   beyond   u32 [sections][beyond_max][2]     exceptions as they travel: token | axis << 16, steps
//
// Bytes beside each other are written by one thread, as words: neighbours never share a word.
#pragma once

#include "device.cuh"

struct CodecSection {
  uint64_t packed;        // Where its KV begins in `packed`, [layer][K, V][kv_head][token][head_size], in bytes.
  uint64_t stream;        // Decoding: where its stream begins in the payload, in bytes; of any alignment.
  uint64_t tail;          // Decoding: what follows the stream.
  uint64_t first;         // Decoding lossy levels: where the elements of position 0 begin in `first`, in bytes; NONE: they are in the section.
  uint32_t stream_bytes;  // Decoding.
  uint32_t gap;           // Encoding: bytes left free before it.
  uint32_t token_begin;   // Position of the first token.
  uint32_t token_count;
  uint32_t group;         // Of layers.
  uint32_t head_count;    // Heads of its layers, K and V.
  uint32_t axis_begin;    // In the tables of all groups.
  uint32_t axis_count;
  uint32_t channel_begin; // In what is known of all groups' channels.
  uint32_t plane_begin;   // In the list of bit planes of all groups.
  uint32_t plane_count;
  uint32_t padding;
};

struct CodecSlots {
  uint32_t axes;
  uint32_t lows;
  uint32_t stride;
};

/// A number that its plane cannot say, as the host read it from a payload.
struct CodecException {
  uint32_t section;
  uint32_t token;
  uint32_t axis;
  int32_t steps;
};

constexpr uint64_t NONE = ~0ull;

enum CodecDtype : uint32_t { CODEC_F32, CODEC_F16, CODEC_BF16 };

/// Tokens of a section rounded up to whole vectors of the CPU's: as many numbers of a column are written.
__device__ __forceinline__ uint32_t padded_tokens(const CodecSection& s) { return (s.token_count + 15) / 16 * 16; }

__device__ __forceinline__ uint32_t element_bytes(uint32_t dtype) { return dtype == CODEC_F32 ? 4 : 2; }

/// The bits of element `index` from `from` on.
__device__ __forceinline__ uint32_t load_bits(const uint8_t* from, uint64_t index, uint32_t dtype) {
  return dtype == CODEC_F32 ? reinterpret_cast<const uint32_t*>(from)[index] : reinterpret_cast<const uint16_t*>(from)[index];
}

__device__ __forceinline__ void store_bits(uint8_t* to, uint64_t index, uint32_t bits, uint32_t dtype) {
  if (dtype == CODEC_F32) {
    reinterpret_cast<uint32_t*>(to)[index] = bits;
  } else {
    reinterpret_cast<uint16_t*>(to)[index] = static_cast<uint16_t>(bits);
  }
}

__device__ __forceinline__ float float_of_bits(uint32_t bits, uint32_t dtype) {
  if (dtype == CODEC_F32) return __uint_as_float(bits);
  return dtype == CODEC_F16 ? float_from_f16(static_cast<uint16_t>(bits)) : float_from_bf16(static_cast<uint16_t>(bits));
}

__device__ __forceinline__ uint32_t bits_of_float(float x, uint32_t dtype) {
  if (dtype == CODEC_F32) return __float_as_uint(x);
  return dtype == CODEC_F16 ? f16_from_float(x) : bf16_from_float(x);
}

/// As the CPU's vectors: the second when they are equal.
__device__ __forceinline__ float larger(float a, float b) { return a > b ? a : b; }
__device__ __forceinline__ float smaller(float a, float b) { return a < b ? a : b; }

/// The whole number next to `x`, ties to even, for magnitudes below 2^22.
__device__ __forceinline__ float whole_of(float x) { return __fsub_rn(__fadd_rn(x, 12582912.0f), 12582912.0f); }
