import type { PromptLogprob, SampledToken } from "@kvasir/proto";
import type { ChatTokenizer } from "@kvasir/tokenizer";
import type { LogprobEntry } from "./token-text.ts";

/** vLLM's shape: for each token of the prompt an object by token id, the token itself always among them; null for the first. */
export type PromptLogprobs = readonly (Readonly<Record<string, VllmLogprob>> | null)[];

interface VllmLogprob {
  readonly logprob: number;
  readonly rank: number;
  readonly decoded_token: string;
}

export function promptLogprobs(tokenizer: ChatTokenizer, first: SampledToken | undefined): PromptLogprobs {
  const shown = (tokenId: number, logprob: number, rank: number): [string, VllmLogprob] => [
    String(tokenId),
    { logprob, rank, decoded_token: tokenizer.tokenText(tokenId) },
  ];
  const entries = (first?.promptLogprobs ?? []).map((entry: PromptLogprob) =>
    Object.fromEntries([
      shown(entry.tokenId, entry.logprob, entry.rank),
      ...entry.topLogprobs.map((top, index) => shown(top.tokenId, top.logprob, index + 1)),
    ]),
  );
  return [null, ...entries];
}

/** The prompt's tokens as entries before those of the answer, for `echo` with `logprobs`. */
export function echoedEntries(
  tokenizer: ChatTokenizer,
  promptTokenIds: readonly number[],
  first: SampledToken | undefined,
): readonly LogprobEntry[] {
  const show = (id: number) => ({ token: tokenizer.tokenText(id), bytes: [...tokenizer.tokenBytes(id)] });
  return promptTokenIds.map((id, index) => {
    const entry = first?.promptLogprobs[index - 1];
    if (entry === undefined) return { ...show(id), logprob: null, top_logprobs: [] };
    const top = entry.topLogprobs.map(({ tokenId, logprob }) => ({ ...show(tokenId), logprob }));
    return { ...show(id), logprob: entry.logprob, top_logprobs: top };
  });
}
