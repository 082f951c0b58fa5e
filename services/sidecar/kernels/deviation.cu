// How far the KV of tokens in one layer is from KV computed afresh: the squared distance over all heads, of keys and of values.
//
//   deviation[i] = Σ (K[fresh[i]] - K[cached[i]])² + Σ (V[fresh[i]] - V[cached[i]])²
//
// The tokens with the largest are the ones worth recomputing (Yao et al., "CacheBlend", EuroSys 2025, section 4.2: "KV deviation"). Both
// sides lie in the pool; fresh, cached: slots. Grid: one block a token; the order of the sum is fixed.

#include "pool.cuh"
#include "reduce.cuh"

struct DeviationParams {
  const uint16_t* pool;
  const uint32_t* fresh;
  const uint32_t* cached;
  float* deviation;
  PoolShape shape;
  uint32_t layer;
};

extern "C" __global__ void __launch_bounds__(128) kv_deviation(DeviationParams p) {
  STATIC_SHARED(float, scratch, 4);
  const uint32_t size = p.shape.head_size, kv_heads = p.shape.kv_head_count;
  float sum = 0.0f;
  for (uint32_t i = threadIdx.x; i < 2 * kv_heads * size / 2; i += blockDim.x) {
    const uint32_t head = i * 2 / size, element = i * 2 % size;
    const auto pair = [&](uint32_t slot) {
      const uint64_t at = pool_offset(p.shape, slot, p.layer, head / kv_heads, head % kv_heads) + element;
      return *reinterpret_cast<const unsigned*>(p.pool + at);
    };
    const unsigned a = pair(p.fresh[blockIdx.x]), b = pair(p.cached[blockIdx.x]);
    const float low = low_bf16(a) - low_bf16(b), high = high_bf16(a) - high_bf16(b);
    sum += low * low + high * high;
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) p.deviation[blockIdx.x] = sum;
}
EXPORT_KERNEL(kv_deviation);
