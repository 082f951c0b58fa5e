// Copies the KV of some tokens to another place of the pool, in all layers, keys turned by the difference of positions.
//
// source, target: slots (block · block_size + token) of each token; turn: f32 [cos | sin][half] of the difference, or null to copy bits. Turns
// add up (Su et al., "RoFormer", 2021, section 3.2); a turned key is rounded to bf16 once more. No block is read and written in one launch.
// Grid: x over tokens, y over groups of four of the layers' heads (keys and values); one warp a head.

#include "pool.cuh"

struct RelocateParams {
  uint16_t* pool;
  const uint32_t* source;
  const uint32_t* target;
  const float* turn;
  PoolShape shape;
  uint32_t half;
};

extern "C" __global__ void __launch_bounds__(128) relocate(RelocateParams p) {
  const uint32_t lane = threadIdx.x % WARP_SIZE, head = blockIdx.y * 4 + threadIdx.x / WARP_SIZE;
  const uint32_t kv_heads = p.shape.kv_head_count, size = p.shape.head_size;
  if (head >= p.shape.layer_count * 2 * kv_heads) return;
  const uint32_t layer = head / (2 * kv_heads), is_value = head / kv_heads % 2, kv_head = head % kv_heads;
  const uint16_t* from = p.pool + pool_offset(p.shape, p.source[blockIdx.x], layer, is_value, kv_head);
  uint16_t* to = p.pool + pool_offset(p.shape, p.target[blockIdx.x], layer, is_value, kv_head);
  uint32_t copied = 0;
  if (is_value == 0 && p.turn != nullptr) {
    copied = 2 * p.half;
    for (uint32_t i = lane; i < p.half; i += WARP_SIZE) {
      const float a = float_from_bf16(from[i]), b = float_from_bf16(from[i + p.half]);
      const float cosine = p.turn[i], sine = p.turn[p.half + i];
      to[i] = bf16_from_float(a * cosine - b * sine);
      to[i + p.half] = bf16_from_float(b * cosine + a * sine);
    }
  }
  for (uint32_t i = copied + lane; i < size; i += WARP_SIZE) to[i] = from[i];
}
EXPORT_KERNEL(relocate);
