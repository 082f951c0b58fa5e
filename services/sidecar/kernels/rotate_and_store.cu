// The way of queries, keys and values from their projection to attention: head norms where a model has them, rotation, and the store of keys
// and values into the paged pool.
//
// qkv: f32 [rows, (head_count + 2 · kv_head_count) · head_size]; query: bf16 [rows, head_count · head_size]; table: rope_table's; slots: for
// each row block · block_size + token. Half-split rotation: element i < half pairs with i + half, (a, b) -> (a cos - b sin, b cos + a sin);
// elements from 2 · half on stay (Su et al., "RoFormer", 2021). Norms: f32 [head_size] or null, before the rotation (Qwen3).
// Grid: x over rows, y over groups of four heads; one warp a head. Each token of the pool is written by one row.

#include "pool.cuh"
#include "reduce.cuh"

struct RotateAndStoreParams {
  const float* qkv;
  const float* table;
  const float* query_norm;
  const float* key_norm;
  const uint32_t* slots;
  uint16_t* query;
  uint16_t* pool;
  PoolShape shape;
  uint32_t layer;
  uint32_t head_count;
  uint32_t half;
  float eps;
};

extern "C" __global__ void __launch_bounds__(128) rotate_and_store(RotateAndStoreParams p) {
  const uint32_t lane = threadIdx.x % WARP_SIZE, head = blockIdx.y * 4 + threadIdx.x / WARP_SIZE;
  const uint32_t kv_heads = p.shape.kv_head_count, heads = p.head_count + 2 * kv_heads, size = p.shape.head_size;
  if (head >= heads) return;
  const uint64_t row = blockIdx.x;
  const float* from = p.qkv + (row * heads + head) * size;
  const bool is_query = head < p.head_count, is_value = head >= p.head_count + kv_heads;
  uint16_t* to = p.query + (row * p.head_count + head) * size;
  if (!is_query) {
    const uint32_t kv_head = (head - p.head_count) % kv_heads;
    to = p.pool + pool_offset(p.shape, p.slots[row], p.layer, is_value, kv_head);
  }
  if (is_value) {
    for (uint32_t i = lane; i < size; i += WARP_SIZE) to[i] = bf16_from_float(from[i]);
    return;
  }
  const float* norm = is_query ? p.query_norm : p.key_norm;
  float factor = 1.0f;
  if (norm != nullptr) {
    float squares = 0.0f;
    for (uint32_t i = lane; i < size; i += WARP_SIZE) squares += from[i] * from[i];
    factor = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(size) + p.eps);
  }
  const auto normed = [&](uint32_t i) { return norm == nullptr ? from[i] : from[i] * factor * norm[i]; };
  const float* cosines = p.table + row * 2 * p.half;
  const float* sines = cosines + p.half;
  for (uint32_t i = lane; i < p.half; i += WARP_SIZE) {
    const float a = normed(i), b = normed(i + p.half), cosine = cosines[i], sine = sines[i];
    to[i] = bf16_from_float(a * cosine - b * sine);
    to[i + p.half] = bf16_from_float(b * cosine + a * sine);
  }
  for (uint32_t i = 2 * p.half + lane; i < size; i += WARP_SIZE) to[i] = bf16_from_float(normed(i));
}
EXPORT_KERNEL(rotate_and_store);
