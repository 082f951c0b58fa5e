// Looks up embeddings: out[i] = table[ids[i]] · scale, widened to f32.
//
// table: bf16 [vocab, width]; out: f32 [rows, width]; width a multiple of 8. Grid: x over groups of 8 elements of a row, y over rows.

#include "device.cuh"

struct EmbeddingParams {
  const uint16_t* table;
  const uint32_t* ids;
  float* out;
  uint32_t width;
  float scale;
};

extern "C" __global__ void __launch_bounds__(128) embedding(EmbeddingParams p) {
  const uint32_t group = blockIdx.x * blockDim.x + threadIdx.x;
  if (group * 8 >= p.width) return;
  const uint64_t id = p.ids[blockIdx.y];
  const uint4 from = *reinterpret_cast<const uint4*>(p.table + id * p.width + group * 8);
  auto* out = reinterpret_cast<float4*>(p.out + static_cast<uint64_t>(blockIdx.y) * p.width + group * 8);
  out[0] = float4{low_bf16(from.x) * p.scale, high_bf16(from.x) * p.scale, low_bf16(from.y) * p.scale, high_bf16(from.y) * p.scale};
  out[1] = float4{low_bf16(from.z) * p.scale, high_bf16(from.z) * p.scale, low_bf16(from.w) * p.scale, high_bf16(from.w) * p.scale};
}
EXPORT_KERNEL(embedding);
