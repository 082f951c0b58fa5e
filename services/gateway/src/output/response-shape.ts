import type { PromptLogprobs } from "./prompt-logprobs.ts";
import type { LogprobEntry } from "./token-text.ts";

export interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
  readonly prompt_tokens_details: { readonly cached_tokens: number };
}

/** What Kvasir adds beside `usage`: where the request went, and its times. */
export interface KvasirExtension {
  readonly trace_id: string;
  readonly mode: "aggregated" | "split";
  readonly prefill_worker: string;
  readonly decode_worker: string;
  readonly ttft_ms: number;
  readonly predicted_ttft_ms: number;
  readonly kv_bytes_moved: number;
  readonly placement_reason: string;
  readonly timings: Readonly<Record<string, number>>;
}

export interface Tail {
  /** In vLLM's shape, when asked for. */
  readonly prompt_logprobs?: PromptLogprobs;
  readonly usage: Usage;
  readonly kvasir: KvasirExtension;
}

/** How one endpoint's responses look. Chunks are whole SSE events. */
export interface ResponseShape {
  chunk(text: string, logprobs: readonly LogprobEntry[], first: boolean): string;
  lastChunk(text: string, finish: string, first: boolean): string;
  usageChunk(tail: Tail): string;
  whole(text: string, logprobs: readonly LogprobEntry[], finish: string, tail: Tail): object;
}

export interface ResponseFacts {
  readonly id: string;
  readonly model: string;
  readonly createdAtUnixS: number;
  readonly withLogprobs: boolean;
  /** The stream ends with usage; the chunks before it then say that theirs is null, as OpenAI's do. */
  readonly withUsage: boolean;
}

export const DONE_EVENT = "data: [DONE]\n\n";

/** An error inside a stream that has begun. */
export function errorEvent(body: object): string {
  return `data: ${JSON.stringify(body)}\n\n`;
}

function chunkEnd(facts: ResponseFacts): string {
  return facts.withUsage ? '}],"usage":null}\n\n' : "}]}\n\n";
}

/** Chat completions. What is the same in each chunk is built once: only text and log-probabilities are encoded per token. */
export function chatShape(facts: ResponseFacts): ResponseShape {
  const head = { id: facts.id, object: "chat.completion.chunk", created: facts.createdAtUnixS, model: facts.model };
  const open = `data: ${JSON.stringify(head).slice(0, -1)},"choices":[{"index":0,"delta":{`;
  const close = chunkEnd(facts);
  const logprobs = (entries: readonly LogprobEntry[]) =>
    facts.withLogprobs ? JSON.stringify({ content: entries, refusal: null }) : "null";
  const delta = (text: string, first: boolean) =>
    `${first ? '"role":"assistant",' : ""}"content":${JSON.stringify(text)}`;
  return {
    chunk: (text, entries, first) =>
      `${open}${delta(text, first)}},"logprobs":${logprobs(entries)},"finish_reason":null${close}`,
    lastChunk: (text, finish, first) =>
      `${open}${text === "" && !first ? "" : delta(text, first)}},"logprobs":null,"finish_reason":"${finish}"${close}`,
    usageChunk: (tail) => `data: ${JSON.stringify({ ...head, choices: [], ...tail })}\n\n`,
    whole: (text, entries, finish, tail) => ({
      ...head,
      object: "chat.completion",
      choices: [
        {
          index: 0,
          message: { role: "assistant", content: text, refusal: null },
          logprobs: facts.withLogprobs ? { content: entries, refusal: null } : null,
          finish_reason: finish,
        },
      ],
      ...tail,
    }),
  };
}

/** Completions, with the older shape of log-probabilities. */
export function completionShape(facts: ResponseFacts): ResponseShape {
  const head = { id: facts.id, object: "text_completion", created: facts.createdAtUnixS, model: facts.model };
  const open = `data: ${JSON.stringify(head).slice(0, -1)},"choices":[{"index":0,"text":`;
  const close = chunkEnd(facts);
  let textOffset = 0;
  const legacy = (entries: readonly LogprobEntry[]) => {
    if (!facts.withLogprobs) return null;
    return {
      tokens: entries.map((entry) => entry.token),
      token_logprobs: entries.map((entry) => entry.logprob),
      top_logprobs: entries.map((entry) =>
        entry.logprob === null ? null : Object.fromEntries(entry.top_logprobs.map((top) => [top.token, top.logprob])),
      ),
      text_offset: entries.map((entry) => {
        const at = textOffset;
        textOffset += entry.token.length;
        return at;
      }),
    };
  };
  return {
    chunk: (text, entries) =>
      `${open}${JSON.stringify(text)},"logprobs":${JSON.stringify(legacy(entries))},"finish_reason":null${close}`,
    lastChunk: (text, finish) => `${open}${JSON.stringify(text)},"logprobs":null,"finish_reason":"${finish}"${close}`,
    usageChunk: (tail) => `data: ${JSON.stringify({ ...head, choices: [], ...tail })}\n\n`,
    whole: (text, entries, finish, { prompt_logprobs, ...tail }) => ({
      ...head,
      choices: [
        {
          index: 0,
          text,
          logprobs: legacy(entries),
          finish_reason: finish,
          ...(prompt_logprobs === undefined ? {} : { prompt_logprobs }),
        },
      ],
      ...tail,
    }),
  };
}
