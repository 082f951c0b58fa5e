// Single instructions that both compilers need under one name: 16-bit conversions, 2^x, matrix fragments, asynchronous copies.
#pragma once

/// Elements `[row][column]` of a 16 x 8 matrix of f32, `[16 x 16] · [16 x 8] + [16 x 8]`: PTX ISA, "Matrix Fragments for mma.m16n8k16".
/// With `group = lane / 4` and `pair = lane % 4 · 2`: `sum` holds rows `group, group + 8` of columns `pair, pair + 1`;
/// `a` rows `group, group + 8` of columns `pair..`, then of columns `pair + 8..`; `b` rows `pair..`, `pair + 8..` of column `group`.
__device__ __forceinline__ void mma_bf16(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  simt::mma_bf16(sum, a, b, simt::Where::current());
#endif
}

/// `[16 x 32] · [32 x 8] + [16 x 8]` of signed times unsigned bytes, exact in 32 bits: PTX ISA, "Matrix Fragments for mma.m16n8k32". `sum` as
/// above; `a` rows `group, group + 8` of columns `2 · pair .. + 4`, then of the same 16 further on; `b` rows `2 · pair .. + 4`, and 16 further on,
/// of column `group`.
__device__ __forceinline__ void mma_s8u8(int (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  simt::mma_s8u8(sum, a, b, simt::Where::current());
#endif
}

/// Four 8 x 8 matrices of 16-bit elements from shared memory; lane `8 i + r` points at row `r` of matrix `i` (16 bytes, aligned).
/// `out[i]` gets elements `[lane / 4][lane % 4 · 2 ..]` of matrix `i`, or of its transpose.
template <bool TRANSPOSED>
__device__ __forceinline__ void load_matrices(unsigned (&out)[4], const void* row) {
#ifdef __CUDACC__
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (TRANSPOSED) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  }
#else
  simt::load_matrices(out, row, TRANSPOSED, simt::Where::current());
#endif
}

/// Starts a copy of 16 bytes from global to shared memory; zeros when not `is_valid`, and `global` is then not read.
__device__ __forceinline__ void async_copy16(void* shared, const void* global, bool is_valid) {
#ifdef __CUDACC__
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = is_valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(global), "r"(bytes) : "memory");
#else
  simt::async_copy(shared, global, is_valid, simt::Where::current());
#endif
}

/// Ends a group of this thread's copies.
__device__ __forceinline__ void async_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#else
  simt::async_commit();
#endif
}

/// Waits until at most the last `GROUPS` groups of this thread are under way. Other threads see the bytes after a barrier.
template <int GROUPS>
__device__ __forceinline__ void async_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;\n" ::"n"(GROUPS) : "memory");
#else
  simt::async_wait(GROUPS);
#endif
}

/// `2^x`; minus infinity gives 0.
__device__ __forceinline__ float exp2_approx(float x) {
#ifdef __CUDACC__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}

__device__ __forceinline__ float float_from_bf16(uint16_t bits) { return __uint_as_float(static_cast<unsigned>(bits) << 16); }

/// Two floats rounded to bf16, ties to even; `low` in the low half.
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
#ifdef __CUDACC__
  unsigned packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#else
  const auto round = [](float x) -> unsigned {
    const unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  };
  return round(low) | round(high) << 16;
#endif
}

__device__ __forceinline__ float float_from_f16(uint16_t bits) {
#ifdef __CUDACC__
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
#else
  return static_cast<float>(std::bit_cast<_Float16>(bits));
#endif
}

/// Rounded to f16, ties to even.
__device__ __forceinline__ uint16_t f16_from_float(float x) {
#ifdef __CUDACC__
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
#else
  return std::bit_cast<uint16_t>(static_cast<_Float16>(x));
#endif
}

__device__ __forceinline__ uint16_t bf16_from_float(float x) { return static_cast<uint16_t>(pack_bf16(x, 0.0f)); }
__device__ __forceinline__ float low_bf16(unsigned packed) { return __uint_as_float(packed << 16); }
__device__ __forceinline__ float high_bf16(unsigned packed) { return __uint_as_float(packed & 0xffff0000u); }
