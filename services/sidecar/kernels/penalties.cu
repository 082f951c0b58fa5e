// Changes single logits before a token is chosen: bias; then repetition (Keskar et al., arXiv:1909.05858), frequency and presence penalty for
// tokens seen before; then minus infinity for what must not be sampled. The CPU's operations in its order.
//
// Entries name a token of a row each, no token of a row twice; logits: f32 [rows, vocab]. Grid: one thread an entry.

#include "device.cuh"

struct PenaltyEntry {
  uint32_t row;
  uint32_t token;
  float bias;
  float repetition;  // Applied when seen.
  float frequency;
  float presence;
  uint32_t count;    // In the output.
  uint32_t flags;    // 1: seen in prompt or output; 2: forbidden.
};

struct PenaltyParams {
  float* logits;
  const PenaltyEntry* entries;
  uint32_t entry_count;
  uint32_t vocab;
};

extern "C" __global__ void __launch_bounds__(128) penalties(PenaltyParams p) {
  const uint32_t index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= p.entry_count) return;
  const PenaltyEntry e = p.entries[index];
  float* at = p.logits + static_cast<uint64_t>(e.row) * p.vocab + e.token;
  float logit = __fadd_rn(*at, e.bias);
  if ((e.flags & 1) != 0) {
    logit = logit > 0.0f ? __fdiv_rn(logit, e.repetition) : __fmul_rn(logit, e.repetition);
    logit = __fsub_rn(logit, __fmul_rn(e.frequency, static_cast<float>(e.count)));
    logit = __fsub_rn(logit, e.count > 0 ? e.presence : 0.0f);
  }
  *at = (e.flags & 2) != 0 ? -INFINITY : logit;
}
EXPORT_KERNEL(penalties);
