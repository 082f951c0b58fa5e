// From logits to a token: temperature, top-k, top-p, min-p, typical-p, one draw. Tokens are the CPU engine's (crates/engine/src/sampling.rs).
//
// Weights are e^((logit - largest) / temperature), the CPU's bits, as integers of 2^-45: what a token below e^-31 of the most likely one would
// add is left out, and sums are exact. The random number is Philox4x32-10 (Salmon et al., SC 2011) of (seed, token index). A draw between
// two tokens falls on the other side than on the CPU when it comes within about 2^-28 of their border.
//
// Truncations are prefixes of the ranking (by logit, then id), so what is kept is one key to compare with, found by radix descent. The draw is
// the token at which the running sum passes random · total: in the ranking when top-k or top-p cut it, else by id, as on the CPU. Typical-p
// ranks what is left by how far its surprise is from the entropy, and draws in that order.
// Grid: one block a row. 3 passes over a row without truncation, up to 22 with top-k and top-p, 26 more with typical-p; a row of 128k logits
// stays in the L2.

#include "select.cuh"

struct SampleRow {
  uint64_t seed;
  uint64_t index;
  uint32_t row;       // Of the logits.
  float temperature;  // 0: the most likely.
  uint32_t top_k;     // 0: all.
  float top_p;        // 0 or 1: all.
  float min_p;        // 0: all.
  float typical_p;    // 0 or 1: all.
};

struct SampleParams {
  const float* logits;  // f32 [rows, vocab]
  const SampleRow* rows;
  uint32_t* tokens;     // [blocks]
  uint32_t vocab;
};

/// The 53 random bits of token `index`, at the top of 64.
__device__ __forceinline__ uint64_t random_bits(uint64_t seed, uint64_t index) {
  uint32_t c0 = static_cast<uint32_t>(index), c1 = static_cast<uint32_t>(index >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; round++) {
    const uint64_t a = static_cast<uint64_t>(c0) * 0xD2511F53u, b = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return (static_cast<uint64_t>(c0) << 32 | c1) & ~0x7ffull;
}

/// The high half of a product.
__device__ __forceinline__ uint64_t multiply_high(uint64_t a, uint64_t b) {
  const uint64_t low = (a & 0xffffffff) * (b & 0xffffffff);
  const uint64_t cross = (a >> 32) * (b & 0xffffffff) + (low >> 32);
  const uint64_t other = (a & 0xffffffff) * (b >> 32) + (cross & 0xffffffff);
  return (a >> 32) * (b >> 32) + (cross >> 32) + (other >> 32);
}

/// The first token by id at which the sum of `mass` passes `target`. Each warp takes a stretch of the row; the one in which the target falls
/// walks it again.
template <typename Mass>
__device__ __forceinline__ void pick_by_id(SelectScratch& s, const float* logits, uint32_t vocab, uint64_t target, uint32_t* out,
                                           Mass mass) {
  constexpr uint32_t WARPS = SAMPLE_THREADS / WARP_SIZE;
  const uint32_t lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
  const uint32_t stretch = (vocab + SAMPLE_THREADS - 1) / SAMPLE_THREADS * WARP_SIZE;
  const uint32_t begin = min(warp * stretch, vocab), end = min(begin + stretch, vocab);
  unsigned long long own = 0;
  for (uint32_t token = begin + lane; token < end; token += WARP_SIZE) own += mass(key_of(logits[token], token));
  own = warp_sum(own);
  if (lane == 0) s.sums[warp] = own;
  __syncthreads();
  uint64_t before = 0;
  for (uint32_t i = 0; i < warp && i < WARPS; i++) before += s.sums[i];
  if (before > target || target >= before + own) return;
  for (uint32_t first = begin; first < end; first += WARP_SIZE) {
    const uint32_t token = first + lane;
    uint64_t through = token < end ? mass(key_of(logits[token], token)) : 0;
    for (uint32_t distance = 1; distance < WARP_SIZE; distance *= 2) {
      const uint64_t left = __shfl_up_sync(ALL_LANES, through, distance);
      if (lane >= distance) through += left;
    }
    const unsigned passed = __ballot_sync(ALL_LANES, before + through > target);
    if (passed != 0) {
      if (lane == 0) *out = first + __ffs(passed) - 1;
      return;
    }
    before += __shfl_sync(ALL_LANES, through, 31);
  }
}

/// A draw among the tokens whose surprise is nearest the entropy, up to a share of `typical_p` (Meister et al., TACL 2023).
template <typename Weight, typename Kept>
__device__ __forceinline__ uint32_t draw_typical(SelectScratch& s, const float* logits, uint32_t vocab, const SampleRow& r, Weight weight,
                                                 Kept kept) {
  const uint64_t total_kept = total_mass(s, logits, vocab, kept);
  const double total = static_cast<double>(total_kept) / 35184372088832.0, log_total = log(total);
  const auto surprise = [&](uint64_t key) { return log_total - log(static_cast<double>(weight(key))); };
  double entropy = 0.0;
  for (uint32_t token = threadIdx.x; token < vocab; token += SAMPLE_THREADS) {
    const uint64_t key = key_of(logits[token], token);
    if (kept(key) != 0) entropy += static_cast<double>(weight(key)) / total * surprise(key);
  }
  entropy = block_sum(entropy, s.partial_sums);
  uint64_t bound = ~0ull;
  // Distances are not negative, so that their bits ascend with them.
  const auto order = [&](uint32_t token) {
    const uint64_t key = key_of(logits[token], token);
    return kept(key) == 0 ? ~0ull : static_cast<uint64_t>(__double_as_longlong(fabs(surprise(key) - entropy)));
  };
  const auto typical = [&](uint32_t token) -> uint64_t {
    return order(token) <= bound ? kept(key_of(logits[token], token)) : 0;
  };
  const auto goal = static_cast<uint64_t>(ceil(static_cast<double>(r.typical_p) * static_cast<double>(total_kept)));
  const uint64_t below = goal == 0 ? 0 : goal - 1;
  bound = order(descend_by(s, vocab, below < total_kept ? below : total_kept - 1, order, typical));
  unsigned long long left = 0;
  for (uint32_t token = threadIdx.x; token < vocab; token += SAMPLE_THREADS) left += typical(token);
  left = block_sum(left, s.sums);
  return descend_by(s, vocab, multiply_high(random_bits(r.seed, r.index), left), order, typical);
}

template <bool TYPICAL>
__device__ __forceinline__ void draw(const SampleParams& p) {
  STATIC_SHARED(SelectScratch, scratch, 1);
  SelectScratch& s = *scratch;
  const SampleRow r = p.rows[blockIdx.x];
  const float* logits = p.logits + static_cast<uint64_t>(r.row) * p.vocab;
  uint32_t* out = p.tokens + blockIdx.x;
  const uint64_t best = best_key(s, logits, p.vocab);
  const float largest = logit_of_rank(static_cast<uint32_t>(best >> 32));
  if (r.temperature == 0.0f || largest == -INFINITY) {
    if (threadIdx.x == 0) *out = static_cast<uint32_t>(best);
    return;
  }
  const float inverse = __fdiv_rn(1.0f, r.temperature);
  const auto weight = [&](uint64_t key) {
    const float logit = logit_of_rank(static_cast<uint32_t>(key >> 32));
    return logit == -INFINITY ? 0.0f : exp_as_cpu(__fmul_rn(__fsub_rn(logit, largest), inverse));
  };
  uint64_t bound = ~0ull;
  const auto mass = [&](uint64_t key) -> uint64_t {
    return key <= bound ? static_cast<uint64_t>(static_cast<double>(weight(key)) * 35184372088832.0) : 0;
  };
  const bool cuts_k = r.top_k != 0 && r.top_k < p.vocab, cuts_p = r.top_p > 0.0f && r.top_p < 1.0f;
  if (cuts_k) bound = descend(s, logits, p.vocab, r.top_k - 1, [](uint64_t) -> uint64_t { return 1; });
  if (cuts_p) {
    const uint64_t total = total_mass(s, logits, p.vocab, mass);
    const auto goal = static_cast<uint64_t>(ceil(static_cast<double>(r.top_p) * static_cast<double>(total)));
    const uint64_t below = goal == 0 ? 0 : goal - 1;
    bound = descend(s, logits, p.vocab, below < total ? below : total - 1, mass);
  }
  const auto kept = [&](uint64_t key) -> uint64_t { return r.min_p > 0.0f && weight(key) < r.min_p ? 0 : mass(key); };
  if (TYPICAL && r.typical_p > 0.0f && r.typical_p < 1.0f) {
    const uint32_t token = draw_typical(s, logits, p.vocab, r, weight, kept);
    if (threadIdx.x == 0) *out = token;
    return;
  }
  const uint64_t target = multiply_high(random_bits(r.seed, r.index), total_mass(s, logits, p.vocab, kept));
  if (cuts_k || cuts_p) {
    const uint64_t key = descend(s, logits, p.vocab, target, kept);
    if (threadIdx.x == 0) *out = static_cast<uint32_t>(key);
  } else {
    pick_by_id(s, logits, p.vocab, target, out, kept);
  }
}
extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS) sample(SampleParams p) { draw<false>(p); }
EXPORT_KERNEL(sample);

/// For launches in which a row has typical-p: apart, since what it needs would cost the others registers.
extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS) sample_typical(SampleParams p) { draw<true>(p); }
EXPORT_KERNEL(sample_typical);
