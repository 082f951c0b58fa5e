import type { SamplingParams } from "@kvasir/proto";
import { invalid } from "./invalid.ts";

const TEMPERATURE_MAX = 2;
const PENALTY_MAX = 2;
const LOGPROBS_MAX = 20;

/** Checks how tokens shall be chosen, as far as the sidecar relies on it; throws INVALID_REQUEST naming the field. */
export function checkSampling(sampling: SamplingParams, vocabSize: number): void {
  const { maxTokens, minTokens } = sampling;
  between("temperature", sampling.temperature, 0, TEMPERATURE_MAX);
  between("top_p", sampling.topP, 0, 1);
  between("min_p", sampling.minP, 0, 1);
  between("typical_p", sampling.typicalP, 0, 1);
  between("repetition_penalty", sampling.repetitionPenalty, 0, PENALTY_MAX);
  between("presence_penalty", sampling.presencePenalty, -PENALTY_MAX, PENALTY_MAX);
  between("frequency_penalty", sampling.frequencyPenalty, -PENALTY_MAX, PENALTY_MAX);
  if (maxTokens < 1) throw invalid("max_tokens", "max_tokens is 0; use at least 1");
  if (minTokens > maxTokens) throw invalid("min_tokens", `min_tokens is ${minTokens}, above max_tokens ${maxTokens}`);
  between("top_logprobs", sampling.topLogprobs, 0, LOGPROBS_MAX);
  between("prompt_logprobs", sampling.promptLogprobs ?? 0, 0, LOGPROBS_MAX);
  const known = (field: string, ids: readonly number[]) => {
    const foreign = ids.find((id) => id >= vocabSize);
    if (foreign !== undefined) throw invalid(field, `${field} has ${foreign}, the vocabulary ends at ${vocabSize - 1}`);
  };
  known("stop_token_ids", sampling.stopTokenIds);
  known(
    "logit_bias",
    sampling.logitBias.map((entry) => entry.tokenId),
  );
  for (const { tokenId, bias } of sampling.logitBias) {
    if (!Number.isFinite(bias))
      throw invalid("logit_bias", `logit_bias is ${bias} for ${tokenId}; use a finite number`);
  }
  if (sampling.constraint !== undefined && sampling.stopTokenIds.length === 0)
    throw invalid("stop_token_ids", "stop_token_ids is empty; a text under a constraint ends with one");
  for (const { tokenIds } of sampling.badWords) {
    if (tokenIds.length === 0) throw invalid("bad_words", "bad_words has an empty word; give at least one token");
    known("bad_words", tokenIds);
  }
}

// Written so that NaN is refused too.
function between(field: string, value: number, min: number, max: number): void {
  if (!(value >= min && value <= max)) throw invalid(field, `${field} is ${value}; use ${min} to ${max}`);
}
