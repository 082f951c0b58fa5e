// Joins the partitions of attention: out = Σ sums[i] · 2^(largest[i] - largest) / Σ total[i] · 2^(largest[i] - largest), i in order.
//
// A row at position q has partitions 0..=q / partition. Grid: x over the places of the list `rows`, y over groups of four query heads; one
// warp a head.

#include "device.cuh"

struct AttentionCombineParams {
  const float* partial_sums;
  const float* partial_stats;
  const uint32_t* rows;
  const uint32_t* positions;
  uint16_t* out;
  uint32_t head_count;
  uint32_t head_size;
  uint32_t partition;
  uint32_t slot_count;
};

extern "C" __global__ void __launch_bounds__(128) attention_combine(AttentionCombineParams p) {
  const uint32_t lane = threadIdx.x % WARP_SIZE, head = blockIdx.y * 4 + threadIdx.x / WARP_SIZE;
  if (head >= p.head_count) return;
  const uint64_t row = p.rows[blockIdx.x], place = static_cast<uint64_t>(blockIdx.x) * p.head_count + head;
  const uint32_t slots = p.positions[row] / p.partition + 1;
  const auto* stats = reinterpret_cast<const float2*>(p.partial_stats) + place * p.slot_count;
  const float* sums = p.partial_sums + place * p.slot_count * p.head_size;
  float largest = -INFINITY;
  for (uint32_t i = 0; i < slots; i++) largest = fmaxf(largest, stats[i].x);
  for (uint32_t element = lane * 2; element < p.head_size; element += 2 * WARP_SIZE) {
    float low = 0.0f, high = 0.0f, total = 0.0f;
    for (uint32_t i = 0; i < slots; i++) {
      const float weight = exp2_approx(stats[i].x - largest);
      const float2 sum = *reinterpret_cast<const float2*>(sums + static_cast<uint64_t>(i) * p.head_size + element);
      low = __fmaf_rn(sum.x, weight, low);
      high = __fmaf_rn(sum.y, weight, high);
      total = __fmaf_rn(stats[i].y, weight, total);
    }
    const float factor = 1.0f / total;
    *reinterpret_cast<unsigned*>(p.out + (row * p.head_count + head) * p.head_size + element) = pack_bf16(low * factor, high * factor);
  }
}
EXPORT_KERNEL(attention_combine);
