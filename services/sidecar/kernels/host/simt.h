// The part of CUDA C++ that the kernels use, on the host: keywords, coordinates, barriers, warp collectives, atomics and matrix fragments.
//
// A block runs as one fiber per thread. Every access of a kernel to memory is seen by hooks.cpp, because kernels are compiled with
// `-fsanitize=thread` and linked with our own functions in place of that sanitizer's runtime. See README.md beside this file.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct uint2 {
  unsigned x, y;
} __attribute__((aligned(8)));
struct uint4 {
  unsigned x, y, z, w;
} __attribute__((aligned(16)));
struct float2 {
  float x, y;
} __attribute__((aligned(8)));
struct float4 {
  float x, y, z, w;
} __attribute__((aligned(16)));
struct dim3 {
  unsigned x, y, z;
};

namespace simt {

using Where = std::source_location;

struct Coordinates {
  dim3 thread, block, block_size, grid_size;
};
/// Of the thread that runs.
extern thread_local const Coordinates* coordinates;

void* dynamic_shared();
void* static_shared(size_t bytes, size_t alignment, Where where);

void barrier(Where where);
void warp_barrier(unsigned mask, Where where);

/// What a lane hands to a collective of its warp and gets back: `value` of each lane of the mask.
struct Exchange {
  uint64_t value[32];
};
void exchange(unsigned mask, uint64_t value, Exchange& all, Where where);
int lane();

void mma_bf16(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2], Where where);
void mma_s8u8(int (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2], Where where);
void load_matrices(unsigned (&out)[4], const void* row, bool transposed, Where where);

void async_copy(void* shared, const void* global, bool is_valid, Where where);
void async_commit();
void async_wait(int groups_left);

/// Reads, changes and writes atomically; returns what was there.
uint32_t atomic_add(uint32_t* at, uint32_t value);
uint64_t atomic_add(uint64_t* at, uint64_t value);
uint32_t atomic_max(uint32_t* at, uint32_t value);

template <typename T>
uint64_t bits_of(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

/// Makes a kernel launchable by its name. Its one argument is a struct.
struct Registration {
  Registration(const char* name, size_t parameter_bytes, void (*run)(const void*));
};
template <typename P>
void call(void (*kernel)(P), const void* parameters) {
  P copy;
  std::memcpy(&copy, parameters, sizeof(P));
  kernel(copy);
}
template <typename P>
constexpr size_t parameter_bytes(void (*)(P)) {
  return sizeof(P);
}

}  // namespace simt

#define threadIdx (simt::coordinates->thread)
#define blockIdx (simt::coordinates->block)
#define blockDim (simt::coordinates->block_size)
#define gridDim (simt::coordinates->grid_size)

#define DYNAMIC_SHARED(name) unsigned char* name = static_cast<unsigned char*>(simt::dynamic_shared())
#define STATIC_SHARED(type, name, count) \
  type* name = static_cast<type*>(simt::static_shared(sizeof(type) * (count), alignof(type), simt::Where::current()))
#define EXPORT_KERNEL(name)                                                                                            \
  static const simt::Registration registration_of_##name(#name, simt::parameter_bytes(name),                           \
                                                         [](const void* parameters) { simt::call(name, parameters); })

inline void __syncthreads(simt::Where where = simt::Where::current()) { simt::barrier(where); }
inline void __syncwarp(unsigned mask = ~0u, simt::Where where = simt::Where::current()) {
  simt::warp_barrier(mask, where);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, simt::Where where = simt::Where::current()) {
  simt::Exchange all;
  simt::exchange(mask, simt::bits_of(value), all, where);
  return simt::from_bits<T>(all.value[source & 31]);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int change, simt::Where where = simt::Where::current()) {
  return __shfl_sync(mask, value, simt::lane() ^ change, where);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, int distance, simt::Where where = simt::Where::current()) {
  const int source = simt::lane() - distance;
  return __shfl_sync(mask, value, source < 0 ? simt::lane() : source, where);
}
inline unsigned __ballot_sync(unsigned mask, bool vote, simt::Where where = simt::Where::current()) {
  simt::Exchange all;
  simt::exchange(mask, vote, all, where);
  unsigned votes = 0;
  for (int i = 0; i < 32; i++) votes |= (mask >> i & 1 & static_cast<unsigned>(all.value[i])) << i;
  return votes;
}
inline bool __any_sync(unsigned mask, bool vote, simt::Where where = simt::Where::current()) {
  return __ballot_sync(mask, vote, where) != 0;
}
inline bool __all_sync(unsigned mask, bool vote, simt::Where where = simt::Where::current()) {
  return __ballot_sync(mask, vote, where) == mask;
}

inline uint32_t atomicAdd(uint32_t* at, uint32_t value) { return simt::atomic_add(at, value); }
inline unsigned long long atomicAdd(unsigned long long* at, unsigned long long value) {
  return simt::atomic_add(reinterpret_cast<uint64_t*>(at), value);
}
inline uint32_t atomicMax(uint32_t* at, uint32_t value) { return simt::atomic_max(at, value); }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __ffs(unsigned x) { return x == 0 ? 0 : std::countr_zero(x) + 1; }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
// Compiled without contraction, so that each of these rounds once, as on the device.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
template <typename T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T max(T a, T b) {
  return a < b ? b : a;
}
