// Gathers KV from the paged pool into one stretch of memory, for transfers and swaps, and scatters it back.
//
// A piece is some tokens of one block in some layers and heads, packed [layer][K, V][kv_head][token][head_size], as the CPU pool's gather gives.
// Tokens of a head may be a part of those packed there: pieces of several blocks then make one stretch, as chunks of the codec hold it.
// Grid: x over pieces, y over the heads of the piece with the most layers; a block copies the tokens of one head, 16 bytes a thread.
// Bytes are not looked at; head_size · 2 bytes are a multiple of 16.

#include "pool.cuh"

struct KvPiece {
  uint64_t packed;  // Where its first token lies in the packed memory, in elements.
  uint32_t slot;    // Of the first token.
  uint32_t token_count;
  uint32_t layer_begin;
  uint32_t layer_count;
  uint32_t head_begin;
  uint32_t head_count;
  uint32_t packed_tokens;  // Of a head in the packed memory: as many as the piece has, or more.
  uint32_t padding;
};

struct KvCopyParams {
  uint16_t* pool;
  uint16_t* packed;
  const KvPiece* pieces;
  PoolShape shape;
};

template <bool GATHER>
__device__ __forceinline__ void copy_piece(const KvCopyParams& p) {
  const KvPiece piece = p.pieces[blockIdx.x];
  const uint32_t heads = piece.head_count, head = blockIdx.y;
  if (head >= piece.layer_count * 2 * heads) return;
  const uint32_t layer = piece.layer_begin + head / (2 * heads), is_value = head / heads % 2;
  const uint32_t elements = piece.token_count * p.shape.head_size;
  auto* paged = reinterpret_cast<uint4*>(p.pool + pool_offset(p.shape, piece.slot, layer, is_value, piece.head_begin + head % heads));
  auto* packed = reinterpret_cast<uint4*>(p.packed + piece.packed + static_cast<uint64_t>(head) * piece.packed_tokens * p.shape.head_size);
  for (uint32_t i = threadIdx.x; i < elements / 8; i += blockDim.x) {
    if constexpr (GATHER) {
      packed[i] = paged[i];
    } else {
      paged[i] = packed[i];
    }
  }
}

extern "C" __global__ void __launch_bounds__(128) kv_gather(KvCopyParams p) { copy_piece<true>(p); }
EXPORT_KERNEL(kv_gather);

extern "C" __global__ void __launch_bounds__(128) kv_scatter(KvCopyParams p) { copy_piece<false>(p); }
EXPORT_KERNEL(kv_scatter);
