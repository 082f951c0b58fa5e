// How likely tokens are: `ln p` of one token a row and of the `top` most likely ones, most likely first, ties by lower id.
//
// logprobs: f32 [rows, 1 + top], the given token's first; top_tokens: u32 [rows, top]; ranks: u32 [rows], 1 + how many logits are above the
// given token's. Weights are the CPU's bits, their sum is in f64 and one fixed order. Grid: one block a row; 3 passes over a row, about 8 with
// `top`, at most 32.

#include "select.cuh"

struct LogprobRow {
  uint32_t row;
  uint32_t token;      // Or its place in `chosen`.
  uint32_t is_chosen;  // 1: that place.
};

struct LogprobParams {
  const float* logits;  // f32 [rows, vocab]
  const LogprobRow* rows;
  const uint32_t* chosen;  // What sample.cu wrote.
  float* logprobs;
  uint32_t* top_tokens;
  uint32_t* ranks;
  uint32_t vocab;
  uint32_t top;
};

extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS) logprobs(LogprobParams p) {
  STATIC_SHARED(SelectScratch, scratch, 1);
  STATIC_SHARED(double, sums, SAMPLE_THREADS / WARP_SIZE);
  STATIC_SHARED(unsigned long long, chosen, 32);
  SelectScratch& s = *scratch;
  const LogprobRow r = p.rows[blockIdx.x];
  const float* logits = p.logits + static_cast<uint64_t>(r.row) * p.vocab;
  const float largest = logit_of_rank(static_cast<uint32_t>(best_key(s, logits, p.vocab) >> 32));
  double total = 0.0;
  for (uint32_t token = threadIdx.x; token < p.vocab; token += SAMPLE_THREADS) total += exp_as_cpu(__fsub_rn(logits[token], largest));
  total = log(block_sum(total, sums));
  const auto logprob = [&](float logit) {
    return static_cast<float>(static_cast<double>(logit) - static_cast<double>(largest) - total);
  };
  float* out = p.logprobs + static_cast<uint64_t>(blockIdx.x) * (1 + p.top);
  const float given = logits[r.is_chosen != 0 ? p.chosen[r.token] : r.token];
  unsigned long long above = 0;
  for (uint32_t token = threadIdx.x; token < p.vocab; token += SAMPLE_THREADS) above += logits[token] > given ? 1 : 0;
  above = block_sum(above, s.sums);
  if (threadIdx.x == 0) {
    out[0] = logprob(given);
    p.ranks[blockIdx.x] = static_cast<uint32_t>(above) + 1;
  }
  if (p.top == 0) return;
  const uint64_t bound = descend(s, logits, p.vocab, p.top - 1, [](uint64_t) -> uint64_t { return 1; });
  if (threadIdx.x == 0) s.ties = 0;
  __syncthreads();
  for (uint32_t token = threadIdx.x; token < p.vocab; token += SAMPLE_THREADS) {
    const uint64_t key = key_of(logits[token], token);
    if (key <= bound) chosen[atomicAdd(&s.ties, 1u)] = key;
  }
  __syncthreads();
  if (threadIdx.x < p.top) {
    const unsigned long long own = chosen[threadIdx.x];
    uint32_t place = 0;
    for (uint32_t i = 0; i < p.top; i++) place += chosen[i] < own;
    const auto token = static_cast<uint32_t>(own);
    out[1 + place] = logprob(logits[token]);
    p.top_tokens[static_cast<uint64_t>(blockIdx.x) * p.top + place] = token;
  }
}
EXPORT_KERNEL(logprobs);
