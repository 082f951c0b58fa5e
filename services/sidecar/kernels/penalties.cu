// Changes to logits before a token is chosen, in the CPU's order and with its operations: edit_logits adds biases; penalties applies repetition
// (Keskar et al., arXiv:1909.05858), frequency and presence penalty to tokens seen before; edit_logits again forbids tokens.
//
// What was seen lies on the device, `seen` u32 [slots, vocab]: 0 for a token that neither prompt nor output has, else one more than its
// occurrences in the output. forget_seen empties slots; note_seen writes what is new, mostly one token a sequence and step.
//
// Grids: forget_seen and penalties x over stretches of 2048 tokens, y over slots or rows; note_seen and edit_logits one thread an entry, of which no
// two name the same place.

#include "device.cuh"

constexpr uint32_t STRETCH = 2048, STRETCH_THREADS = 256, ENTRY_THREADS = 128;

struct ForgetSeenParams {
  uint32_t* seen;
  const uint32_t* slots;
  uint32_t vocab;
};

extern "C" __global__ void __launch_bounds__(STRETCH_THREADS) forget_seen(ForgetSeenParams p) {
  uint32_t* seen = p.seen + static_cast<uint64_t>(p.slots[blockIdx.y]) * p.vocab;
  const uint32_t begin = blockIdx.x * STRETCH, end = min(begin + STRETCH, p.vocab);
  for (uint32_t token = begin + threadIdx.x; token < end; token += STRETCH_THREADS) seen[token] = 0;
}
EXPORT_KERNEL(forget_seen);

struct SeenToken {
  uint32_t slot;
  uint32_t token;
  uint32_t count;  // In the output.
};

struct NoteSeenParams {
  uint32_t* seen;
  const SeenToken* entries;
  uint32_t entry_count;
  uint32_t vocab;
};

extern "C" __global__ void __launch_bounds__(ENTRY_THREADS) note_seen(NoteSeenParams p) {
  const uint32_t index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= p.entry_count) return;
  const SeenToken e = p.entries[index];
  p.seen[static_cast<uint64_t>(e.slot) * p.vocab + e.token] = e.count + 1;
}
EXPORT_KERNEL(note_seen);

struct PenaltyRow {
  uint32_t row;
  uint32_t slot;
  float repetition;
  float frequency;
  float presence;
};

struct PenaltyParams {
  float* logits;
  const uint32_t* seen;
  const PenaltyRow* rows;
  uint32_t vocab;
};

extern "C" __global__ void __launch_bounds__(STRETCH_THREADS) penalties(PenaltyParams p) {
  const PenaltyRow r = p.rows[blockIdx.y];
  float* logits = p.logits + static_cast<uint64_t>(r.row) * p.vocab;
  const uint32_t* seen = p.seen + static_cast<uint64_t>(r.slot) * p.vocab;
  const uint32_t begin = blockIdx.x * STRETCH, end = min(begin + STRETCH, p.vocab);
  for (uint32_t token = begin + threadIdx.x; token < end; token += STRETCH_THREADS) {
    const uint32_t noted = seen[token];
    if (noted == 0) continue;
    float logit = logits[token];
    logit = logit > 0.0f ? __fdiv_rn(logit, r.repetition) : __fmul_rn(logit, r.repetition);
    logit = __fsub_rn(logit, __fmul_rn(r.frequency, static_cast<float>(noted - 1)));
    logits[token] = __fsub_rn(logit, noted > 1 ? r.presence : 0.0f);
  }
}
EXPORT_KERNEL(penalties);

struct LogitEdit {
  uint32_t row;
  uint32_t token;
  float bias;
  uint32_t is_forbidden;
};

struct EditLogitsParams {
  float* logits;
  const LogitEdit* entries;
  uint32_t entry_count;
  uint32_t vocab;
};

extern "C" __global__ void __launch_bounds__(ENTRY_THREADS) edit_logits(EditLogitsParams p) {
  const uint32_t index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= p.entry_count) return;
  const LogitEdit e = p.entries[index];
  float* at = p.logits + static_cast<uint64_t>(e.row) * p.vocab + e.token;
  *at = e.is_forbidden != 0 ? -INFINITY : __fadd_rn(*at, e.bias);
}
EXPORT_KERNEL(edit_logits);
