import type { PromptLogprobs } from "./prompt-logprobs.ts";
import type { LogprobEntry } from "./token-text.ts";

export interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
  /** Tokens of the prompt whose KV was there and was not computed. */
  readonly prompt_tokens_details: { readonly cached_tokens: number };
}

/** Tokens of the prompt whose KV was not computed for this request, by where it was. */
export interface CachedBySource {
  /** On the worker that computed the rest of the prompt. */
  readonly resident: number;
  readonly remote_worker: number;
  readonly store_dram: number;
  readonly store_disk: number;
  /** Moved from another place in a text: approximate, and not among the usage's cached tokens. */
  readonly blended: number;
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
  readonly cached_tokens: CachedBySource;
  readonly approximate_prompt_tokens: number;
  readonly placement_reason: string;
  /** It could not meet its targets, and was served all the same. */
  readonly best_effort: boolean;
  /** The decode worker computed the prompt, because no prefill worker was left. */
  readonly local_prefill: boolean;
  /** How often a worker was lost after the first token and the answer went on elsewhere. */
  readonly resumes: number;
  readonly timings: Readonly<Record<string, number>>;
}

export interface Tail {
  /** In vLLM's shape, when asked for. */
  readonly prompt_logprobs?: PromptLogprobs;
  readonly usage: Usage;
  readonly kvasir: KvasirExtension;
}

/** One answer, whole. */
export interface WholeChoice {
  readonly text: string;
  readonly logprobs: readonly LogprobEntry[];
  readonly finish: string;
}

/** How one endpoint's responses look. Chunks are whole SSE events of the answer with that index. */
export interface ResponseShape {
  chunk(index: number, text: string, logprobs: readonly LogprobEntry[], first: boolean): string;
  lastChunk(index: number, text: string, finish: string, first: boolean): string;
  usageChunk(tail: Tail): string;
  whole(choices: readonly WholeChoice[], tail: Tail): object;
}

export interface ResponseFacts {
  readonly id: string;
  readonly model: string;
  readonly createdAtUnixS: number;
  readonly withLogprobs: boolean;
  /** The stream ends with usage; the chunks before it then say that theirs is null, as OpenAI's do. */
  readonly withUsage: boolean;
  /** OpenAI's `service_tier`: as what the request is served, known once it is placed; undefined: not to be told. */
  readonly serviceTier: () => string | undefined;
}

export const DONE_EVENT = "data: [DONE]\n\n";

/** An error inside a stream that has begun. */
export function errorEvent(body: object): string {
  return `data: ${JSON.stringify(body)}\n\n`;
}

function chunkEnd(facts: ResponseFacts): string {
  return facts.withUsage ? '}],"usage":null}\n\n' : "}]}\n\n";
}

/** What each chunk begins with, and whole answers too; built when the first token comes. */
function headOf(facts: ResponseFacts, object: string): () => object {
  let head: object | undefined;
  return () => {
    if (head !== undefined) return head;
    const tier = facts.serviceTier();
    const { id, createdAtUnixS: created, model } = facts;
    head = { id, object, created, model, ...(tier === undefined ? {} : { service_tier: tier }) };
    return head;
  };
}

function beginOf(head: () => object): () => string {
  let begin: string | undefined;
  return () => {
    begin ??= `data: ${JSON.stringify(head()).slice(0, -1)},"choices":[{"index":`;
    return begin;
  };
}

/** Chat completions. What is the same in each chunk is built once: only text and log-probabilities are encoded per token. */
export function chatShape(facts: ResponseFacts): ResponseShape {
  const head = headOf(facts, "chat.completion.chunk");
  const begin = beginOf(head);
  const close = chunkEnd(facts);
  const logprobs = (entries: readonly LogprobEntry[]) =>
    facts.withLogprobs ? JSON.stringify({ content: entries, refusal: null }) : "null";
  const delta = (text: string, first: boolean) =>
    `${first ? '"role":"assistant",' : ""}"content":${JSON.stringify(text)}`;
  return {
    chunk: (index, text, entries, first) =>
      `${begin()}${index},"delta":{${delta(text, first)}},"logprobs":${logprobs(entries)},"finish_reason":null${close}`,
    lastChunk: (index, text, finish, first) =>
      `${begin()}${index},"delta":{${text === "" && !first ? "" : delta(text, first)}},"logprobs":null,"finish_reason":"${finish}"${close}`,
    usageChunk: (tail) => `data: ${JSON.stringify({ ...head(), choices: [], ...tail })}\n\n`,
    whole: (choices, tail) => ({
      ...head(),
      object: "chat.completion",
      choices: choices.map(({ text, logprobs: entries, finish }, index) => ({
        index,
        message: { role: "assistant", content: text, refusal: null },
        logprobs: facts.withLogprobs ? { content: entries, refusal: null } : null,
        finish_reason: finish,
      })),
      ...tail,
    }),
  };
}

/** Completions, with the older shape of log-probabilities. */
export function completionShape(facts: ResponseFacts): ResponseShape {
  const head = headOf(facts, "text_completion");
  const begin = beginOf(head);
  const close = chunkEnd(facts);
  const textOffsets: number[] = [];
  const legacy = (index: number, entries: readonly LogprobEntry[]) => {
    if (!facts.withLogprobs) return null;
    return {
      tokens: entries.map((entry) => entry.token),
      token_logprobs: entries.map((entry) => entry.logprob),
      top_logprobs: entries.map((entry) =>
        entry.logprob === null ? null : Object.fromEntries(entry.top_logprobs.map((top) => [top.token, top.logprob])),
      ),
      text_offset: entries.map((entry) => {
        const at = textOffsets[index] ?? 0;
        textOffsets[index] = at + entry.token.length;
        return at;
      }),
    };
  };
  return {
    chunk: (index, text, entries) => {
      const logprobs = JSON.stringify(legacy(index, entries));
      return `${begin()}${index},"text":${JSON.stringify(text)},"logprobs":${logprobs},"finish_reason":null${close}`;
    },
    lastChunk: (index, text, finish) =>
      `${begin()}${index},"text":${JSON.stringify(text)},"logprobs":null,"finish_reason":"${finish}"${close}`,
    usageChunk: (tail) => `data: ${JSON.stringify({ ...head(), choices: [], ...tail })}\n\n`,
    whole: (choices, { prompt_logprobs, ...tail }) => ({
      ...head(),
      choices: choices.map(({ text, logprobs: entries, finish }, index) => ({
        index,
        text,
        logprobs: legacy(index, entries),
        finish_reason: finish,
        ...(prompt_logprobs === undefined ? {} : { prompt_logprobs }),
      })),
      ...tail,
    }),
  };
}
