// Paged causal attention for many query rows that share keys: prompts, and the common prefix of many sequences.
//
//   out[row, head] = softmax(query[row, head] · Kᵀ / sqrt(head_size)) · V     over the keys of positions 0..=positions[row]
//
// Rows of a tile may stand at any positions, in any order, so that chosen tokens of a prompt can be recomputed among cached ones (blending).
// Grid: x over tiles of 64 packed rows, y over KV heads, z over partitions (1 without them); four warps of 16 rows share each key tile. Two
// blocks an SM are asked for: asked for none, ptxas saves registers and spills at head sizes 32 and 64.
//
// With partitions, a tile of rows from many sequences over the keys that all of them begin with is the prefix pass of Hydragen (Juravsky et
// al., arXiv:2402.05099): the keys are read once for 64 rows instead of once for each sequence. Partitions begin at fixed positions, and a
// partition's arithmetic is the decode kernel's, so joining gives the same bits as without the pass.

#include "attention.cuh"

template <int D>
__device__ __forceinline__ void attend_rows(const AttentionParams& p) {
  DYNAMIC_SHARED(shared_bytes);
  auto* keys = reinterpret_cast<uint16_t*>(shared_bytes);
  auto* values = keys + KeyTile<D>::ELEMENTS;
  const AttentionTile tile = p.tiles[blockIdx.x];
  uint32_t begin = tile.key_begin, end = tile.key_end;
  if (p.partition != 0) {
    begin = max(begin, blockIdx.z * p.partition);
    end = min(end, (blockIdx.z + 1) * p.partition);
    if (begin >= end) return;
  }
  const OwnRows own(p, tile, threadIdx.x / WARP_SIZE * 16);
  RunningRows<D> running;
  running.load_query(p, own);
  walk<D, BlockTeam>(running, p, tile, own, begin, end, keys, values);
  running.finish(p, own, blockIdx.z);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_rows_16(AttentionParams p) { attend_rows<16>(p); }
EXPORT_KERNEL(attention_rows_16);

extern "C" __global__ void __launch_bounds__(128, 2) attention_rows_32(AttentionParams p) { attend_rows<32>(p); }
EXPORT_KERNEL(attention_rows_32);

extern "C" __global__ void __launch_bounds__(128, 2) attention_rows_64(AttentionParams p) { attend_rows<64>(p); }
EXPORT_KERNEL(attention_rows_64);

extern "C" __global__ void __launch_bounds__(128, 2) attention_rows_96(AttentionParams p) { attend_rows<96>(p); }
EXPORT_KERNEL(attention_rows_96);

extern "C" __global__ void __launch_bounds__(128, 2) attention_rows_128(AttentionParams p) { attend_rows<128>(p); }
EXPORT_KERNEL(attention_rows_128);

extern "C" __global__ void __launch_bounds__(128, 2) attention_rows_256(AttentionParams p) { attend_rows<256>(p); }
EXPORT_KERNEL(attention_rows_256);
