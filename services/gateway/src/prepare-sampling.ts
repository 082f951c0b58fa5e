import { randomBytes } from "node:crypto";
import type { ChatTokenizer } from "@kvasir/tokenizer";
import { RequestError } from "./http/openai-error.ts";
import type { ChatRequest, CompletionRequest } from "./http/schema.ts";
import type { ServedModel } from "./prepare.ts";
import { type FieldConstraint, prepareConstraint } from "./prepare-constraint.ts";

/** How tokens are chosen, as the workers read it (`kvasir.common.v1.SamplingParams`). */
export interface Sampling {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly typicalP: number;
  readonly repetitionPenalty: number;
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
  readonly logitBias: { readonly tokenId: number; readonly bias: number }[];
  readonly minTokens: number;
  readonly badWords: { readonly tokenIds: number[] }[];
  readonly seed: bigint;
  readonly maxTokens: number;
  readonly stopTokenIds: readonly number[];
  readonly logprobs: boolean;
  readonly topLogprobs: number;
  readonly promptLogprobs?: number;
  /** `field` stays in the gateway. */
  readonly constraint?: FieldConstraint;
}

/** What both endpoints take alike. Zero and one stand for what changes nothing, as OpenAI's defaults do. */
export async function prepareSampling(
  model: ServedModel,
  request: ChatRequest | CompletionRequest,
): Promise<Omit<Sampling, "maxTokens" | "logprobs" | "topLogprobs">> {
  const own = request.stop_token_ids ?? [];
  checkTokens(model, "stop_token_ids", own);
  const logitBias = Object.entries(request.logit_bias ?? {}).map(([id, bias]) => ({ tokenId: Number(id), bias }));
  checkTokens(
    model,
    "logit_bias",
    logitBias.map((entry) => entry.tokenId),
  );
  const stopTokenIds = [...new Set(request.ignore_eos === true ? own : [...model.facts.eosTokenIds, ...own])];
  const constraint = prepareConstraint(request);
  if (constraint !== undefined && stopTokenIds.length === 0) {
    const message = `ignore_eos leaves a text under ${constraint.field} without an end; leave it out or give stop_token_ids`;
    throw new RequestError(message, { param: "ignore_eos", code: "invalid_value" });
  }
  return {
    temperature: request.temperature ?? 1,
    topK: Math.max(0, request.top_k ?? 0),
    topP: request.top_p ?? 1,
    minP: request.min_p ?? 0,
    typicalP: request.typical_p ?? 1,
    repetitionPenalty: request.repetition_penalty ?? 1,
    presencePenalty: request.presence_penalty ?? 0,
    frequencyPenalty: request.frequency_penalty ?? 0,
    logitBias,
    minTokens: request.min_tokens ?? 0,
    badWords: await badWords(model.tokenizer, request.bad_words ?? []),
    seed: request.seed == null ? randomBytes(8).readBigUInt64LE() : BigInt.asUintN(64, BigInt(request.seed)),
    stopTokenIds,
    ...(constraint === undefined ? {} : { constraint }),
    ...(request.prompt_logprobs == null ? {} : { promptLogprobs: request.prompt_logprobs }),
  };
}

export function checkMinTokens(minTokens: number | null | undefined, maxTokens: number, limitField: string): void {
  if ((minTokens ?? 0) <= maxTokens) return;
  const message = `min_tokens is ${minTokens}, above ${limitField} ${maxTokens}; use at most that`;
  throw new RequestError(message, { param: "min_tokens", code: "invalid_value" });
}

function checkTokens(model: ServedModel, param: string, ids: readonly number[]): void {
  const foreign = ids.find((id) => id >= model.facts.vocabSize);
  if (foreign === undefined) return;
  const message = `${param} names token ${foreign}; ${model.name} has ${model.facts.vocabSize}`;
  throw new RequestError(message, { param, code: "invalid_value" });
}

/** A word's tokens at the beginning of a text and after a space, which most tokenizers tell apart. */
async function badWords(tokenizer: ChatTokenizer, words: readonly string[]): Promise<{ tokenIds: number[] }[]> {
  const found = new Map<string, number[]>();
  for (const word of words) {
    const bare = word.trimStart() || word;
    for (const text of [bare, ` ${bare}`]) {
      const tokenIds = await tokenizer.encode(text, { addSpecialTokens: false });
      if (tokenIds.length > 0) found.set(tokenIds.join(), [...tokenIds]);
    }
  }
  return [...found.values()].map((tokenIds) => ({ tokenIds }));
}
