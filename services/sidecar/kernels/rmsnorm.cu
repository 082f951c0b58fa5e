// Root-mean-square norm of each row, with the residual addition before it:
//
//   hidden = hidden + delta + bias        (delta, bias: null when there is none)
//   out    = hidden / sqrt(mean(hidden²) + eps) · weight, rounded to bf16
//
// hidden, delta: f32 [rows, width]; bias, weight: f32 [width]; out: bf16 [rows, width]; width a multiple of 4. With `row_index`, row i of
// `out` is of row `row_index[i]` of hidden and delta. Grid: one block a row; a thread takes every blockDim-th group of four elements, so the
// order of a row's sum depends on the width alone. Reads 8 and writes 6 bytes an element; what is read twice is in the first-level cache.
// Source: Zhang & Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019.

#include "reduce.cuh"

struct RmsNormParams {
  float* hidden;
  const float* delta;
  const float* bias;
  const float* weight;
  uint16_t* out;
  const uint32_t* row_index;
  uint32_t width;
  float eps;
};

extern "C" __global__ void __launch_bounds__(256) rmsnorm(RmsNormParams p) {
  STATIC_SHARED(float, scratch, 8);
  const uint64_t row = p.row_index == nullptr ? blockIdx.x : p.row_index[blockIdx.x];
  auto* hidden = reinterpret_cast<float4*>(p.hidden + row * p.width);
  const auto* delta = reinterpret_cast<const float4*>(p.delta + row * p.width);
  const auto* bias = reinterpret_cast<const float4*>(p.bias);
  const uint32_t groups = p.width / 4;

  float squares = 0.0f;
  for (uint32_t i = threadIdx.x; i < groups; i += blockDim.x) {
    float4 x = hidden[i];
    if (p.delta != nullptr) {
      const float4 d = delta[i];
      x.x += d.x, x.y += d.y, x.z += d.z, x.w += d.w;
    }
    if (p.bias != nullptr) {
      const float4 b = bias[i];
      x.x += b.x, x.y += b.y, x.z += b.z, x.w += b.w;
    }
    if (p.delta != nullptr || p.bias != nullptr) hidden[i] = x;
    squares += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
  }
  const float factor = 1.0f / sqrtf(block_sum(squares, scratch) / static_cast<float>(p.width) + p.eps);

  auto* out = reinterpret_cast<uint2*>(p.out + static_cast<uint64_t>(blockIdx.x) * p.width);
  const auto* weight = reinterpret_cast<const float4*>(p.weight);
  for (uint32_t i = threadIdx.x; i < groups; i += blockDim.x) {
    const float4 x = hidden[i], w = weight[i];
    out[i] = uint2{pack_bf16(x.x * factor * w.x, x.y * factor * w.y), pack_bf16(x.z * factor * w.z, x.w * factor * w.w)};
  }
}
EXPORT_KERNEL(rmsnorm);
