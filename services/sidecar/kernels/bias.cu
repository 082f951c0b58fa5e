// x[row] += bias for each row. x: f32 [rows, width]; bias: f32 [width]; width a multiple of 4.
//
// Grid: x over groups of four elements of a row, y over rows.

#include "device.cuh"

struct BiasParams {
  float* x;
  const float* bias;
  uint32_t width;
};

extern "C" __global__ void __launch_bounds__(128) add_bias(BiasParams p) {
  const uint32_t group = blockIdx.x * blockDim.x + threadIdx.x;
  if (group * 4 >= p.width) return;
  auto* x = reinterpret_cast<float4*>(p.x + static_cast<uint64_t>(blockIdx.y) * p.width) + group;
  const float4 a = *x, b = reinterpret_cast<const float4*>(p.bias)[group];
  *x = float4{a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}
EXPORT_KERNEL(add_bias);
