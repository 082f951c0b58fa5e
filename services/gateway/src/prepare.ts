import type { KvAccuracy } from "@kvasir/core";
import type { ChatMessage, ChatTokenizer, ModelFacts } from "@kvasir/tokenizer";
import { RequestError } from "./http/openai-error.ts";
import type { ChatRequest, CompletionRequest } from "./http/schema.ts";
import type { WishFields } from "./placement-wishes.ts";
import { checkMinTokens, prepareSampling, type Sampling } from "./prepare-sampling.ts";

/** OpenAI's default for completions; chats may fill the context. */
const COMPLETION_MAX_TOKENS = 16;

/** One model as the gateway knows it. */
export interface ServedModel {
  readonly name: string;
  readonly tokenizer: ChatTokenizer;
  readonly facts: ModelFacts;
  readonly createdAtUnixS: number;
  /** Bytes of the longest token: a text of more than this times the context cannot fit, and need not be tokenized to know it. */
  readonly longestTokenBytes: number;
}

/** A request ready to be placed. */
export interface PreparedRequest {
  readonly endpoint: "chat" | "completion";
  readonly promptTokenIds: readonly number[];
  readonly sampling: Sampling;
  /** Answers to the prompt. */
  readonly choiceCount: number;
  readonly stops: readonly string[];
  /** Whether the stop string that was found stays in the text. */
  readonly keepStop: boolean;
  /** Whether the text begins with the prompt. */
  readonly echo: boolean;
  /** Whether the prompt's log-probabilities are shown in vLLM's way. */
  readonly showPromptLogprobs: boolean;
  readonly stream: boolean;
  readonly includeUsage: boolean;
  /** Narrows who may reuse this request's KV. */
  readonly cacheSalt: string | undefined;
  /** What the body says of how urgent it is, and of what it goes with. */
  readonly wishes: WishFields;
  /** What KV that travels for it may lose. */
  readonly kvAccuracy: KvAccuracy;
}

/** Renders and tokenizes a chat, off the event loop. */
export async function prepareChat(model: ServedModel, request: ChatRequest): Promise<PreparedRequest> {
  if ((request.top_logprobs ?? 0) > 0 && request.logprobs !== true) {
    throw new RequestError("top_logprobs needs logprobs: true", { param: "top_logprobs", code: "invalid_value" });
  }
  const messages = request.messages.map(
    ({ role, content }): ChatMessage => ({
      role: role === "developer" ? "system" : role,
      content: typeof content === "string" ? content : content.map((part) => part.text).join(""),
    }),
  );
  const documents = (request.documents ?? []).map((document) =>
    typeof document === "string"
      ? { text: document }
      : { text: document.text, ...(document.title ? { title: document.title } : {}) },
  );
  const prompt = model.tokenizer.renderChat(messages, { documents });
  checkTextLength(model, prompt, "messages");
  const promptTokenIds = await model.tokenizer.encode(prompt, { addSpecialTokens: false });
  const wanted = request.max_completion_tokens ?? request.max_tokens ?? undefined;
  const limit = request.max_completion_tokens != null ? "max_completion_tokens" : "max_tokens";
  const maxTokens = checkLength(model, promptTokenIds, wanted, undefined, "messages", limit);
  checkMinTokens(request.min_tokens, maxTokens, limit);
  return {
    endpoint: "chat",
    promptTokenIds,
    sampling: {
      ...(await prepareSampling(model, request)),
      maxTokens,
      logprobs: request.logprobs ?? false,
      topLogprobs: request.top_logprobs ?? 0,
    },
    echo: false,
    showPromptLogprobs: request.prompt_logprobs != null,
    ...commonOutput(request),
  };
}

/** Tokenizes a prompt, or takes the tokens given. */
export async function prepareCompletion(model: ServedModel, request: CompletionRequest): Promise<PreparedRequest> {
  const [first] = Array.isArray(request.prompt) ? request.prompt : [request.prompt];
  if (typeof first === "string") checkTextLength(model, first, "prompt");
  const promptTokenIds =
    typeof first === "string" ? await model.tokenizer.encode(first) : (request.prompt as readonly number[]);
  const foreign = promptTokenIds.find((id) => id >= model.facts.vocabSize);
  if (foreign !== undefined) {
    const message = `prompt names token ${foreign}; ${model.name} has ${model.facts.vocabSize}`;
    throw new RequestError(message, { param: "prompt", code: "invalid_value" });
  }
  if (promptTokenIds.length === 0) {
    throw new RequestError("prompt is empty; give at least one token", { param: "prompt", code: "invalid_value" });
  }
  const wanted = request.max_tokens ?? undefined;
  const maxTokens = checkLength(model, promptTokenIds, wanted, COMPLETION_MAX_TOKENS, "prompt", "max_tokens");
  checkMinTokens(request.min_tokens, maxTokens, "max_tokens");
  const echo = request.echo ?? false;
  const sampling = await prepareSampling(model, request);
  const echoed = echo && request.logprobs != null && sampling.promptLogprobs === undefined;
  return {
    endpoint: "completion",
    promptTokenIds,
    sampling: {
      ...sampling,
      ...(echoed ? { promptLogprobs: request.logprobs ?? 0 } : {}),
      maxTokens,
      logprobs: request.logprobs != null,
      topLogprobs: request.logprobs ?? 0,
    },
    echo,
    showPromptLogprobs: request.prompt_logprobs != null,
    ...commonOutput(request),
  };
}

function commonOutput(
  request: ChatRequest | CompletionRequest,
): Pick<
  PreparedRequest,
  "choiceCount" | "stops" | "keepStop" | "stream" | "includeUsage" | "cacheSalt" | "wishes" | "kvAccuracy"
> {
  if (request.stream_options != null && request.stream !== true) {
    throw new RequestError("stream_options needs stream: true", { param: "stream_options", code: "invalid_value" });
  }
  const stops = typeof request.stop === "string" ? [request.stop] : (request.stop ?? []);
  if (request.prompt_logprobs != null && request.stream === true) {
    const message = "prompt_logprobs comes with a whole answer only; leave stream out";
    throw new RequestError(message, { param: "prompt_logprobs", code: "invalid_value" });
  }
  return {
    choiceCount: request.n ?? 1,
    stops,
    keepStop: request.include_stop_str_in_output ?? false,
    stream: request.stream ?? false,
    includeUsage: request.stream_options?.include_usage ?? false,
    cacheSalt: request.cache_salt ?? undefined,
    wishes: {
      slo: request.kvasir?.slo ?? undefined,
      serviceTier: request.service_tier ?? undefined,
      priority: request.priority ?? 0,
      sessionId: request.session_id ?? undefined,
      promptCacheKey: request.prompt_cache_key ?? undefined,
    },
    kvAccuracy: request.kvasir?.kv_accuracy ?? "exact",
  };
}

export function longestTokenBytes(tokenizer: ChatTokenizer): number {
  let longest = 1;
  for (let id = 0; id < tokenizer.vocabSize; id++) longest = Math.max(longest, tokenizer.tokenBytes(id).length);
  return longest;
}

/** Refuses a text far beyond the context before it costs seconds of tokenizing. */
function checkTextLength(model: ServedModel, text: string, field: string): void {
  const { contextLength } = model.facts;
  const byteCount = Buffer.byteLength(text);
  if (byteCount <= contextLength * model.longestTokenBytes) return;
  const tokenCount = Math.ceil(byteCount / model.longestTokenBytes);
  const message = `${field}: the prompt has ${byteCount} bytes, at least ${tokenCount} tokens; the context of ${model.name} is ${contextLength}; shorten it`;
  throw new RequestError(message, { param: field, code: "context_length_exceeded" });
}

function checkLength(
  model: ServedModel,
  promptTokenIds: readonly number[],
  wanted: number | undefined,
  preset: number | undefined,
  promptField: string,
  limitField: string,
): number {
  const { contextLength } = model.facts;
  const room = contextLength - promptTokenIds.length;
  if (room < 1) {
    const message = `${promptField}: the prompt has ${promptTokenIds.length} tokens, the context of ${model.name} is ${contextLength}; shorten it`;
    throw new RequestError(message, { param: promptField, code: "context_length_exceeded" });
  }
  if (wanted !== undefined && wanted > room) {
    const message = `${limitField} is ${wanted}; the prompt has ${promptTokenIds.length} tokens and the context is ${contextLength}, so at most ${room}`;
    throw new RequestError(message, { param: limitField, code: "context_length_exceeded" });
  }
  return wanted ?? Math.min(room, preset ?? room);
}
