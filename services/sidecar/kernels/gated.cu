// The gated unit between the two products of a feed-forward layer: out = act(gate) · up, in f32, rounded to bf16.
//
// gate_up: bf16 [rows, 2 · width], a row's gates before its ups; out: bf16 [rows, width]; width a multiple of 8. `activation` 0 is SiLU
// (SwiGLU, Shazeer, "GLU Variants Improve Transformer", 2020), 1 is GELU by tanh (Hendrycks & Gimpel, 2016), which equals x · sigmoid of
// twice the tanh's argument. Grid: x over groups of 8 elements of a row, y over rows. Six bytes an element, bound by memory.

#include "device.cuh"

struct GatedParams {
  const uint16_t* gate_up;
  uint16_t* out;
  uint32_t width;
  uint32_t activation;
};

__device__ __forceinline__ float activate(float x, uint32_t activation) {
  const float argument = activation == 0 ? x : x * (1.5957692f + 0.0713548162f * x * x);
  return x / (1.0f + exp2_approx(argument * -1.44269504f));
}

__device__ __forceinline__ unsigned gated_pair(unsigned gate, unsigned up, uint32_t activation) {
  return pack_bf16(activate(low_bf16(gate), activation) * low_bf16(up), activate(high_bf16(gate), activation) * high_bf16(up));
}

extern "C" __global__ void __launch_bounds__(128) gated(GatedParams p) {
  const uint32_t group = blockIdx.x * blockDim.x + threadIdx.x;
  if (group * 8 >= p.width) return;
  const uint16_t* row = p.gate_up + static_cast<uint64_t>(blockIdx.y) * 2 * p.width + group * 8;
  const uint4 gate = *reinterpret_cast<const uint4*>(row), up = *reinterpret_cast<const uint4*>(row + p.width);
  *reinterpret_cast<uint4*>(p.out + static_cast<uint64_t>(blockIdx.y) * p.width + group * 8) =
      uint4{gated_pair(gate.x, up.x, p.activation), gated_pair(gate.y, up.y, p.activation),
            gated_pair(gate.z, up.z, p.activation), gated_pair(gate.w, up.w, p.activation)};
}
EXPORT_KERNEL(gated);
