// Weights of tokens, bit for bit as on the CPU, and the order in which tokens rank.
#pragma once

#include "device.cuh"

/// `e^x` for `x` in [-87, 88], the value at the nearer end outside: the CPU engine's polynomial, each operation rounded once.
__device__ __forceinline__ float exp_as_cpu(float x) {
  constexpr float ROUND = 12582912.0f;  // 1.5 · 2^23 leaves an integer in the low bits.
  x = fminf(fmaxf(x, -87.0f), 88.0f);
  const float biased = __fmaf_rn(x, 1.44269504088896340736f, ROUND);
  const float n = __fsub_rn(biased, ROUND);
  float r = __fmaf_rn(n, -355.0f / 512.0f, x);
  r = __fmaf_rn(n, 2.1219444e-4f, r);
  float series = 1.0f / 5040.0f;
  series = __fmaf_rn(series, r, 1.0f / 720.0f);
  series = __fmaf_rn(series, r, 1.0f / 120.0f);
  series = __fmaf_rn(series, r, 1.0f / 24.0f);
  series = __fmaf_rn(series, r, 1.0f / 6.0f);
  series = __fmaf_rn(series, r, 0.5f);
  series = __fmaf_rn(series, r, 1.0f);
  series = __fmaf_rn(series, r, 1.0f);
  return __fmul_rn(series, __uint_as_float((__float_as_uint(biased) << 23) + 0x3f800000u));
}

/// Ascending for descending logits; NaN ranks with minus infinity, -0 with 0.
__device__ __forceinline__ uint32_t rank_of(float logit) {
  const uint32_t bits = logit != logit ? 0xff800000u : __float_as_uint(__fadd_rn(logit, 0.0f));
  return bits >> 31 == 0 ? ~bits & 0x7fffffffu : bits;
}

/// A token's place among all: by descending logit, then ascending id, which is the low half.
__device__ __forceinline__ uint64_t key_of(float logit, uint32_t token) {
  return static_cast<uint64_t>(rank_of(logit)) << 32 | token;
}

/// The logit that a rank was made of, NaN as minus infinity.
__device__ __forceinline__ float logit_of_rank(uint32_t rank) {
  return __uint_as_float(rank >> 31 == 0 ? ~rank & 0x7fffffffu : rank);
}
