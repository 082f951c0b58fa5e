// Logits of rows that something changes before a token is chosen: copies of them, and what a constraint leaves of those.
//
// copy_rows: rows[i] of `logits` to row i of `adjusted`, both f32 [_, vocab]. Grid: x over stretches of 2048 logits, y over rows.
//
// mask_rows: minus infinity for what the row's mask does not allow, bit `t % 32` of word `t / 32` for token t. Where nothing allowed is left,
// the constraint alone counts: the row is then made of the logits as the model gave them. Grid: one block a row; two passes over it.

#include "reduce.cuh"

constexpr uint32_t COPIED = 2048, RESTRICT_THREADS = 256;

struct CopyRowsParams {
  const float* logits;
  float* adjusted;
  const uint32_t* rows;
  uint32_t vocab;
};

extern "C" __global__ void __launch_bounds__(RESTRICT_THREADS) copy_rows(CopyRowsParams p) {
  const float* from = p.logits + static_cast<uint64_t>(p.rows[blockIdx.y]) * p.vocab;
  float* to = p.adjusted + static_cast<uint64_t>(blockIdx.y) * p.vocab;
  const uint32_t begin = blockIdx.x * COPIED, end = min(begin + COPIED, p.vocab);
  for (uint32_t token = begin + threadIdx.x; token < end; token += RESTRICT_THREADS) to[token] = from[token];
}
EXPORT_KERNEL(copy_rows);

struct MaskRow {
  uint32_t row;       // Of the logits.
  uint32_t adjusted;  // Of the adjusted ones.
};

struct MaskRowsParams {
  const float* logits;
  float* adjusted;
  const MaskRow* rows;
  const uint32_t* bits;  // [blocks][words], words = vocab / 32, rounded up
  uint32_t vocab;
};

extern "C" __global__ void __launch_bounds__(RESTRICT_THREADS) mask_rows(MaskRowsParams p) {
  STATIC_SHARED(uint32_t, scratch, RESTRICT_THREADS / WARP_SIZE);
  const MaskRow r = p.rows[blockIdx.x];
  const float* logits = p.logits + static_cast<uint64_t>(r.row) * p.vocab;
  float* adjusted = p.adjusted + static_cast<uint64_t>(r.adjusted) * p.vocab;
  const uint32_t* bits = p.bits + static_cast<uint64_t>(blockIdx.x) * ((p.vocab + 31) / 32);
  const auto is_allowed = [&](uint32_t token) { return (bits[token / 32] >> token % 32 & 1) != 0; };
  uint32_t left = 0;
  for (uint32_t token = threadIdx.x; token < p.vocab; token += RESTRICT_THREADS) {
    const float logit = adjusted[token];
    // NaN counts as something, as on the CPU.
    if (is_allowed(token)) left |= logit == -INFINITY ? 0u : 1u;
  }
  const bool anything = block_sum(left, scratch) != 0;
  for (uint32_t token = threadIdx.x; token < p.vocab; token += RESTRICT_THREADS) {
    if (!is_allowed(token)) {
      adjusted[token] = -INFINITY;
    } else if (!anything) {
      adjusted[token] = logits[token];
    }
  }
}
EXPORT_KERNEL(mask_rows);
