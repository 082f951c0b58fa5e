import type { SampledToken } from "@kvasir/proto";
import { type ChatTokenizer, createStopMatcher } from "@kvasir/tokenizer";

/** One token's log-probability as OpenAI's chat API shows it; null for a prompt's first token, which follows nothing. */
export interface LogprobEntry {
  readonly token: string;
  readonly logprob: number | null;
  readonly bytes: readonly number[];
  readonly top_logprobs: readonly {
    readonly token: string;
    readonly logprob: number;
    readonly bytes: readonly number[];
  }[];
}

/** What a batch of tokens adds to the output. */
export interface OutputPiece {
  readonly text: string;
  readonly logprobs: readonly LogprobEntry[];
  /** A stop string was found; nothing follows. */
  readonly stopped: boolean;
}

/** Tokens to text: incremental, stop strings cut off, log-probabilities beside it. */
export interface TokenText {
  push(tokens: readonly SampledToken[]): OutputPiece;
  /** What was held back, at an end that no stop string made. */
  flush(): string;
}

export interface TokenTextOptions {
  readonly stops: readonly string[];
  /** Whether the stop string that was found is shown. */
  readonly keepStop: boolean;
  readonly withLogprobs: boolean;
}

export function createTokenText(tokenizer: ChatTokenizer, options: TokenTextOptions): TokenText {
  const { stops, keepStop, withLogprobs } = options;
  const detokenizer = tokenizer.createDetokenizer();
  const matcher = createStopMatcher(stops);
  const ids: number[] = [];
  return {
    push(tokens) {
      ids.length = 0;
      for (const token of tokens) ids.push(token.tokenId);
      const { text, matched } = matcher.push(detokenizer.push(ids));
      return {
        text: keepStop && matched !== undefined ? text + matched : text,
        logprobs: withLogprobs ? tokens.map((token) => entry(tokenizer, token)) : [],
        stopped: matched !== undefined,
      };
    },
    flush() {
      const { text, matched } = matcher.push(detokenizer.flush());
      if (matched === undefined) return text + matcher.flush();
      return keepStop ? text + matched : text;
    },
  };
}

function entry(tokenizer: ChatTokenizer, token: SampledToken): LogprobEntry {
  const show = (id: number, logprob: number) => ({
    token: tokenizer.tokenText(id),
    logprob,
    bytes: [...tokenizer.tokenBytes(id)],
  });
  return {
    ...show(token.tokenId, token.logprob ?? 0),
    top_logprobs: token.topLogprobs.map((top) => show(top.tokenId, top.logprob)),
  };
}
