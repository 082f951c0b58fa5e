// Sums and maxima over a warp or a block, in one fixed order.
#pragma once

#include "device.cuh"

/// The sum of all lanes' values, in every lane: a butterfly, so that each lane adds the same pairs.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(ALL_LANES, value, distance);
  return value;
}

/// The sum over the block, in every thread; `scratch` has a place for each warp and may be used again after the next barrier.
template <typename T>
__device__ __forceinline__ T block_sum(T value, T* scratch) {
  const unsigned warp = threadIdx.x / WARP_SIZE, warps = blockDim.x / WARP_SIZE;
  value = warp_sum(value);
  if (threadIdx.x % WARP_SIZE == 0) scratch[warp] = value;
  __syncthreads();
  T sum = scratch[0];
  for (unsigned i = 1; i < warps; i++) sum += scratch[i];
  __syncthreads();
  return sum;
}

/// The sum of the values of all threads up to this one; `scratch` as above.
template <typename T>
__device__ __forceinline__ T block_sum_through(T value, T* scratch) {
  const unsigned lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
  for (unsigned distance = 1; distance < WARP_SIZE; distance *= 2) {
    const T before = __shfl_up_sync(ALL_LANES, value, distance);
    if (lane >= distance) value += before;
  }
  if (lane == WARP_SIZE - 1) scratch[warp] = value;
  __syncthreads();
  for (unsigned i = 0; i < warp; i++) value += scratch[i];
  __syncthreads();
  return value;
}
