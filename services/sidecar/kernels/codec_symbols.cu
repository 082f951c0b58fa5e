// Quantising: columns of numbers become symbols, and back, with steps of their axis (crates/kernels/src/coding/symbols.rs has the formulas).
//
// Numbers outside what an axis's symbols can say get the nearest one and are exceptions, in the order axis, token.
// Grid: x over groups of four axes, y over sections; one warp an axis, a lane four tokens.

#include "codec.cuh"
#include "reduce.cuh"

struct CodecAxis {
  uint32_t shift;  // Low bits.
  uint32_t low;    // Which of its group's low planes it has.
  uint32_t plane;  // First of its bit planes in the section's tail.
  float offset, symbol_max, step, base, dead_zone, rounding, first, second;
};

struct SymbolsParams {
  const CodecSection* sections;
  const CodecAxis* axes;
  float* columns;
  uint8_t* high;
  uint8_t* low;
  uint32_t* counts;  // [sections][counts_each]: exceptions of each axis, then how many come before.
  uint32_t* beyond;
  const uint8_t* payload;
  CodecSlots slots;
  uint32_t counts_each;
  uint32_t beyond_max;
};

/// How many steps a number is from the base.
__device__ __forceinline__ float steps_of(const CodecAxis& a, float x) {
  float v = __fmul_rn(__fsub_rn(x, a.base), __fdiv_rn(1.0f, a.step));
  v = larger(smaller(v, 1e6f), -1e6f);
  const float size = larger(v, __fsub_rn(0.0f, v));
  const float whole = whole_of(__fadd_rn(size, __fsub_rn(a.rounding, 0.5f)));
  const float open = larger(smaller(__fmul_rn(__fsub_rn(size, a.dead_zone), 1e30f), 1.0f), 0.0f);
  const float sign = larger(smaller(__fmul_rn(v, 1e30f), 1.0f), -1.0f);
  return __fmul_rn(__fmul_rn(whole, open), sign);
}

/// What a number of steps stands for.
__device__ __forceinline__ float value_of(const CodecAxis& a, float steps) {
  const float drawn = __fmaf_rn(larger(smaller(steps, 2.0f), -2.0f), a.second, a.base);
  return __fmaf_rn(steps, a.step, __fmaf_rn(larger(smaller(steps, 1.0f), -1.0f), a.first, drawn));
}

extern "C" __global__ void __launch_bounds__(128) symbols_from_columns(SymbolsParams p) {
  const CodecSection s = p.sections[blockIdx.y];
  const uint32_t lane = threadIdx.x % WARP_SIZE, axis = blockIdx.x * 4 + threadIdx.x / WARP_SIZE;
  if (axis >= s.axis_count) return;
  const CodecAxis a = p.axes[s.axis_begin + axis];
  const uint64_t row = (static_cast<uint64_t>(blockIdx.y) * p.slots.axes + axis) * p.slots.stride;
  const uint64_t low_row = (static_cast<uint64_t>(blockIdx.y) * p.slots.lows + a.low) * p.slots.stride;
  uint32_t beyond = 0;
  for (uint32_t token = 4 * lane; token < padded_tokens(s); token += 4 * WARP_SIZE) {
    const float4 four = *reinterpret_cast<const float4*>(p.columns + row + token);
    const float numbers[4] = {four.x, four.y, four.z, four.w};
    uint32_t high = 0, low = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float wanted = __fadd_rn(steps_of(a, numbers[i]), a.offset);
      if (token + i < s.token_count && (wanted < 0.0f || wanted > a.symbol_max)) beyond++;
      const auto symbol = static_cast<uint32_t>(larger(smaller(wanted, a.symbol_max), 0.0f));
      high |= symbol >> a.shift << 8 * i;
      low |= (symbol & ((1u << a.shift) - 1)) << 8 * i;
    }
    *reinterpret_cast<uint32_t*>(p.high + row + token) = high;
    if (a.shift > 0) *reinterpret_cast<uint32_t*>(p.low + low_row + token) = low;
  }
  beyond = warp_sum(beyond);
  if (lane == 0) p.counts[static_cast<uint64_t>(blockIdx.y) * p.counts_each + axis] = beyond;
}
EXPORT_KERNEL(symbols_from_columns);

/// Writes the exceptions to where counting said.
extern "C" __global__ void __launch_bounds__(128) symbols_beyond(SymbolsParams p) {
  const CodecSection s = p.sections[blockIdx.y];
  const uint32_t lane = threadIdx.x % WARP_SIZE, axis = blockIdx.x * 4 + threadIdx.x / WARP_SIZE;
  if (axis >= s.axis_count) return;
  // One more count than there are axes: the sum of all.
  const uint32_t* counts = p.counts + static_cast<uint64_t>(blockIdx.y) * p.counts_each + axis;
  uint32_t at = counts[0];
  if (counts[1] == at) return;
  const CodecAxis a = p.axes[s.axis_begin + axis];
  const float* column = p.columns + (static_cast<uint64_t>(blockIdx.y) * p.slots.axes + axis) * p.slots.stride;
  auto* beyond = reinterpret_cast<uint2*>(p.beyond) + static_cast<uint64_t>(blockIdx.y) * p.beyond_max;
  for (uint32_t first = 0; first < s.token_count; first += WARP_SIZE) {
    const uint32_t token = first + lane;
    float steps = 0.0f;
    bool is_beyond = false;
    if (token < s.token_count) {
      steps = steps_of(a, column[token]);
      const float wanted = __fadd_rn(steps, a.offset);
      is_beyond = wanted < 0.0f || wanted > a.symbol_max;
    }
    const unsigned all = __ballot_sync(ALL_LANES, is_beyond);
    const uint32_t place = at + __popc(all & ((1u << lane) - 1));
    if (is_beyond && place < p.beyond_max) beyond[place] = uint2{token | axis << 16, static_cast<uint32_t>(static_cast<int32_t>(steps))};
    at += __popc(all);
  }
}
EXPORT_KERNEL(symbols_beyond);

/// Low bits come from the payload: plane `b` of an axis has bit `b` of token `t` at bit `t % 8` of byte `t / 8`.
extern "C" __global__ void __launch_bounds__(128) symbols_to_columns(SymbolsParams p) {
  const CodecSection s = p.sections[blockIdx.y];
  const uint32_t lane = threadIdx.x % WARP_SIZE, axis = blockIdx.x * 4 + threadIdx.x / WARP_SIZE;
  if (axis >= s.axis_count) return;
  const CodecAxis a = p.axes[s.axis_begin + axis];
  const uint64_t row = (static_cast<uint64_t>(blockIdx.y) * p.slots.axes + axis) * p.slots.stride;
  const uint32_t plane_bytes = (s.token_count + 7) / 8;
  const uint8_t* planes = p.payload + s.tail + static_cast<uint64_t>(a.plane) * plane_bytes;
  for (uint32_t token = 4 * lane; token < padded_tokens(s); token += 4 * WARP_SIZE) {
    const uint32_t high = *reinterpret_cast<const uint32_t*>(p.high + row + token);
    uint32_t low[4] = {};
    for (uint32_t bit = 0; bit < a.shift && token < s.token_count; bit++) {
      const uint32_t byte = planes[static_cast<uint64_t>(bit) * plane_bytes + token / 8];
#pragma unroll
      for (int i = 0; i < 4; i++) low[i] |= (byte >> (token % 8 + i) & 1) << bit;
    }
    float values[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t symbol = (high >> 8 * i & 255) << a.shift | low[i];
      values[i] = value_of(a, __fsub_rn(static_cast<float>(symbol), a.offset));
    }
    *reinterpret_cast<float4*>(p.columns + row + token) = float4{values[0], values[1], values[2], values[3]};
  }
}
EXPORT_KERNEL(symbols_to_columns);

struct SetColumnsParams {
  const CodecSection* sections;
  const CodecAxis* axes;
  const CodecException* exceptions;  // No place twice.
  float* columns;
  CodecSlots slots;
  uint32_t count;
};

/// Replaces the numbers of exceptions. Grid: x over 128 of them.
extern "C" __global__ void __launch_bounds__(128) set_columns(SetColumnsParams p) {
  const uint32_t index = blockIdx.x * 128 + threadIdx.x;
  if (index >= p.count) return;
  const CodecException one = p.exceptions[index];
  const CodecAxis a = p.axes[p.sections[one.section].axis_begin + one.axis];
  const uint64_t row = static_cast<uint64_t>(one.section) * p.slots.axes + one.axis;
  p.columns[row * p.slots.stride + one.token] = value_of(a, static_cast<float>(one.steps));
}
EXPORT_KERNEL(set_columns);
