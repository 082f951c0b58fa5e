// Cosines and sines of the rows of one step, shared by all layers: the angle position · frequency rounds to f32 once, then f64, as on the CPU.
//
// table: f32 [rows][cos | sin][half]. Grid: x over pairs of a row, y over rows.

#include "device.cuh"

struct RopeTableParams {
  const uint32_t* positions;
  const float* frequencies;
  float* table;
  uint32_t half;
  float scale;
};

extern "C" __global__ void __launch_bounds__(64) rope_table(RopeTableParams p) {
  const uint32_t pair = blockIdx.x * blockDim.x + threadIdx.x;
  if (pair >= p.half) return;
  const double angle = __fmul_rn(static_cast<float>(p.positions[blockIdx.y]), p.frequencies[pair]);
  float* row = p.table + static_cast<uint64_t>(blockIdx.y) * 2 * p.half;
  row[pair] = static_cast<float>(cos(angle)) * p.scale;
  row[p.half + pair] = static_cast<float>(sin(angle)) * p.scale;
}
EXPORT_KERNEL(rope_table);
