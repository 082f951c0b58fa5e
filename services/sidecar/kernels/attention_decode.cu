// Paged attention for few query rows over many keys: decode, with the keys split among warps (Flash-Decoding, Dao et al., 2023).
//
// The same result as attention_rows.cu, bit for bit, for the same partition. Grid: x over tiles of 16 packed rows (one token of up to 16 query
// heads a KV head, or several tokens), y over KV heads, z over pairs of partitions; each of the two warps of a block walks a partition of its
// own through its own key tiles, so that no warp waits for another. Two warps and their 70 KB (head size 128) fit three times into an SM of
// compute capability 9.0, which the bounds ask for, and once into one of 8.9. At head size 256 a block
// has one warp. Without partitions the first warp walks all keys.

#include "attention.cuh"

template <int D>
__device__ __forceinline__ void attend_decode(const AttentionParams& p) {
  DYNAMIC_SHARED(shared_bytes);
  const uint32_t warp = threadIdx.x / WARP_SIZE, slot = blockIdx.z * (blockDim.x / WARP_SIZE) + warp;
  auto* keys = reinterpret_cast<uint16_t*>(shared_bytes) + warp * 2 * KeyTile<D>::ELEMENTS;
  auto* values = keys + KeyTile<D>::ELEMENTS;
  const AttentionTile tile = p.tiles[blockIdx.x];
  uint32_t begin = tile.key_begin, end = tile.key_end;
  if (p.partition == 0) {
    if (warp != 0) return;
  } else {
    begin = max(begin, slot * p.partition);
    end = min(end, (slot + 1) * p.partition);
    if (begin >= end) return;
  }
  const OwnRows own(p, tile, 0);
  RunningRows<D> running;
  running.load_query(p, own);
  walk<D, WarpTeam>(running, p, tile, own, begin, end, keys, values);
  running.finish(p, own, slot);
}

extern "C" __global__ void __launch_bounds__(64, 3) attention_decode_16(AttentionParams p) { attend_decode<16>(p); }
EXPORT_KERNEL(attention_decode_16);

extern "C" __global__ void __launch_bounds__(64, 3) attention_decode_32(AttentionParams p) { attend_decode<32>(p); }
EXPORT_KERNEL(attention_decode_32);

extern "C" __global__ void __launch_bounds__(64, 3) attention_decode_64(AttentionParams p) { attend_decode<64>(p); }
EXPORT_KERNEL(attention_decode_64);

extern "C" __global__ void __launch_bounds__(64, 3) attention_decode_96(AttentionParams p) { attend_decode<96>(p); }
EXPORT_KERNEL(attention_decode_96);

extern "C" __global__ void __launch_bounds__(64, 3) attention_decode_128(AttentionParams p) { attend_decode<128>(p); }
EXPORT_KERNEL(attention_decode_128);

extern "C" __global__ void __launch_bounds__(32, 3) attention_decode_256(AttentionParams p) { attend_decode<256>(p); }
EXPORT_KERNEL(attention_decode_256);
