// Own matrix product, out = x · weightsᵀ: for `--deterministic`, and where cuBLASLt is not found.
//
// x: bf16 [rows, inner]; weights: bf16 [cols, inner]; out: [rows, cols], f32 or bf16; inner a multiple of 8. Each element is one sum over
// `inner` in steps of 16, in order, in one f32 accumulator: it depends on its row and column only, never on the number of rows nor on which
// of the two shapes below computed it. cuBLASLt promises that for no shape.
//
// Shapes: `tall` 128 x 128 by 8 warps (each 64 x 32) for many rows; `flat` 16 x 32 by 4 warps (each 16 x 8) for few, where reading the
// weights is all the work. Two and four stages of 64 inner elements move by cp.async; rows of shared memory are padded by 16 bytes, which puts the
// eight rows that ldmatrix reads together into different banks. Grid: x over columns, y over rows.

#include "device.cuh"

struct GemmParams {
  const uint16_t* x;
  const uint16_t* weights;
  void* out;
  uint32_t rows;
  uint32_t cols;
  uint32_t inner;
};

constexpr uint32_t INNER = 64;
constexpr uint32_t STRIDE = INNER + 8;

template <int ROWS, int COLS, int WARPS_DOWN, int WARPS_ACROSS, int STAGES, bool IS_BF16>
__device__ __forceinline__ void gemm(const GemmParams& p) {
  constexpr int THREADS = WARPS_DOWN * WARPS_ACROSS * 32;
  constexpr int ROW_TILES = ROWS / WARPS_DOWN / 16, COL_TILES = COLS / WARPS_ACROSS / 8;
  constexpr uint32_t STAGE = (ROWS + COLS) * STRIDE;
  DYNAMIC_SHARED(shared_bytes);
  auto* shared = reinterpret_cast<uint16_t*>(shared_bytes);
  const uint32_t thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const uint32_t first_row = blockIdx.y * ROWS, first_col = blockIdx.x * COLS;
  const uint32_t warp_row = warp / WARPS_ACROSS * (ROWS / WARPS_DOWN), warp_col = warp % WARPS_ACROSS * (COLS / WARPS_ACROSS);
  const uint32_t steps = (p.inner + INNER - 1) / INNER;

  const auto load = [&](uint32_t step) {
    if (step < steps) {
      uint16_t* stage = shared + step % STAGES * STAGE;
#pragma unroll
      for (uint32_t i = thread; i < (ROWS + COLS) * INNER / 8; i += THREADS) {
        const uint32_t line = i / (INNER / 8), inner = step * INNER + i % (INNER / 8) * 8;
        const bool is_x = line < ROWS;
        const uint64_t index = is_x ? first_row + line : first_col + line - ROWS;
        const bool is_valid = index < (is_x ? p.rows : p.cols) && inner < p.inner;
        async_copy16(stage + line * STRIDE + i % (INNER / 8) * 8, (is_x ? p.x : p.weights) + index * p.inner + inner, is_valid);
      }
    }
    async_commit();
  };

  float sums[ROW_TILES][COL_TILES][4] = {};
  for (int step = 0; step < STAGES - 1; step++) load(step);
  for (uint32_t step = 0; step < steps; step++) {
    async_wait<STAGES - 2>();
    __syncthreads();  // The stage has come, and nobody reads the one that is loaded next.
    load(step + STAGES - 1);
    const uint16_t* x = shared + step % STAGES * STAGE;
    const uint16_t* weights = x + ROWS * STRIDE;
#pragma unroll
    for (uint32_t inner = 0; inner < INNER; inner += 32) {
      unsigned b[COL_TILES][4];  // Two steps of 16 of 8 columns.
#pragma unroll
      for (int col = 0; col < COL_TILES; col++)
        load_matrices<false>(b[col], weights + (warp_col + col * 8 + lane % 8) * STRIDE + inner + lane / 8 * 8);
#pragma unroll
      for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int row = 0; row < ROW_TILES; row++) {
          unsigned a[4];
          load_matrices<false>(a, x + (warp_row + row * 16 + lane % 16) * STRIDE + inner + half * 16 + lane / 16 * 8);
#pragma unroll
          for (int col = 0; col < COL_TILES; col++) {
            const unsigned pair[2] = {b[col][half * 2], b[col][half * 2 + 1]};
            mma_bf16(sums[row][col], a, pair);
          }
        }
      }
    }
  }
  async_wait<0>();

#pragma unroll
  for (int row = 0; row < ROW_TILES; row++) {
#pragma unroll
    for (int col = 0; col < COL_TILES; col++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const uint64_t r = first_row + warp_row + row * 16 + lane / 4 + i / 2 * 8;
        const uint64_t c = first_col + warp_col + col * 8 + lane % 4 * 2 + i % 2;
        if (r >= p.rows || c >= p.cols) continue;
        if constexpr (IS_BF16) {
          static_cast<uint16_t*>(p.out)[r * p.cols + c] = bf16_from_float(sums[row][col][i]);
        } else {
          static_cast<float*>(p.out)[r * p.cols + c] = sums[row][col][i];
        }
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(256) gemm_tall_f32(GemmParams p) { gemm<128, 128, 2, 4, 2, false>(p); }
EXPORT_KERNEL(gemm_tall_f32);

extern "C" __global__ void __launch_bounds__(256) gemm_tall_bf16(GemmParams p) { gemm<128, 128, 2, 4, 2, true>(p); }
EXPORT_KERNEL(gemm_tall_bf16);

extern "C" __global__ void __launch_bounds__(128) gemm_flat_f32(GemmParams p) { gemm<16, 32, 1, 4, 4, false>(p); }
EXPORT_KERNEL(gemm_flat_f32);

extern "C" __global__ void __launch_bounds__(128) gemm_flat_bf16(GemmParams p) { gemm<16, 32, 1, 4, 4, true>(p); }
EXPORT_KERNEL(gemm_flat_bf16);
