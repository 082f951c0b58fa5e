import type { MessageInitShape } from "@bufbuild/protobuf";
import type { Token, TokenLogprob } from "@kvasir/core";
import type { SampledTokenSchema } from "@kvasir/proto";

/** A core token as a wire message: the same fields, without those that are absent. */
export function wireToken({ tokenId, logprob, topLogprobs, promptLogprobs }: Token): WireToken {
  const token: WireToken = { tokenId, topLogprobs: topLogprobs.map(pair) };
  if (logprob !== undefined) token.logprob = logprob;
  if (promptLogprobs !== undefined && promptLogprobs.length > 0) {
    token.promptLogprobs = promptLogprobs.map((entry) => ({
      ...pair(entry),
      rank: entry.rank,
      topLogprobs: entry.topLogprobs.map(pair),
    }));
  }
  return token;
}

type WireToken = MessageInitShape<typeof SampledTokenSchema>;

const pair = ({ tokenId, logprob }: TokenLogprob) => ({ tokenId, logprob });
