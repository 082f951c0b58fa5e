// Where a token's key or value lies in the paged pool: bf16 [block][layer][K, V][kv_head][token][head_size].
#pragma once

#include "device.cuh"

struct PoolShape {
  uint32_t layer_count;
  uint32_t kv_head_count;
  uint32_t head_size;
  uint32_t block_size;
};

/// Offset in elements. `slot` is block · block_size + token; `is_value` 0 or 1.
__device__ __forceinline__ uint64_t pool_offset(const PoolShape& shape, uint32_t slot, uint32_t layer, uint32_t is_value,
                                                uint32_t kv_head) {
  const uint64_t block = slot / shape.block_size, token = slot % shape.block_size;
  const uint64_t head = (block * shape.layer_count + layer) * 2 * shape.kv_head_count + is_value * shape.kv_head_count + kv_head;
  return (head * shape.block_size + token) * shape.head_size;
}
