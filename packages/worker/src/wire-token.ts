import type { Token } from "@kvasir/core";

/** A core token as a wire message: the same fields, without those that are absent. */
export function wireToken({ tokenId, logprob, topLogprobs }: Token): WireToken {
  const top = topLogprobs.map((entry) => ({ tokenId: entry.tokenId, logprob: entry.logprob }));
  return logprob === undefined ? { tokenId, topLogprobs: top } : { tokenId, logprob, topLogprobs: top };
}

interface WireToken {
  tokenId: number;
  logprob?: number;
  topLogprobs: { tokenId: number; logprob: number }[];
}
