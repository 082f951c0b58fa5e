import type { SequenceKind, SequenceSpec } from "./events.ts";

/**
 * Blocks that a further answer shares with the first one: those that are full before the prompt's last token. That token is computed anew for
 * each answer, because its logits are what the first token of the answer is drawn from.
 */
export function sharedBlockCount(promptTokenCount: number, blockSize: number): number {
  return Math.floor((promptTokenCount - 1) / blockSize);
}

/** Tokens that may be generated after a prompt: what was asked for, cut at the context's end. Below 1: the prompt alone is too long. */
export function clipMaxTokens(promptTokenCount: number, maxTokens: number, contextLength: number): number {
  return Math.min(maxTokens, contextLength - promptTokenCount);
}

/**
 * Most blocks that a sequence can come to hold. A prefill sequence never writes the KV of what it samples.
 * `maxTokens` is already clipped to the context.
 */
export function worstCaseBlockCount(
  kind: SequenceKind,
  promptTokenCount: number,
  maxTokens: number,
  blockSize: number,
): number {
  return Math.ceil((kind === "prefill" ? promptTokenCount : promptTokenCount + maxTokens) / blockSize);
}

/** The same of a sequence, without its branches. */
export function worstCaseOf({ kind, promptTokenIds, maxTokens }: SequenceSpec, blockSize: number): number {
  return worstCaseBlockCount(kind, promptTokenIds.length, maxTokens, blockSize);
}

/** Blocks of a further answer beyond those it shares. */
export function branchWorstCaseOf({ promptTokenIds, maxTokens }: SequenceSpec, blockSize: number): number {
  const whole = worstCaseBlockCount("local", promptTokenIds.length, maxTokens, blockSize);
  return whole - sharedBlockCount(promptTokenIds.length, blockSize);
}
