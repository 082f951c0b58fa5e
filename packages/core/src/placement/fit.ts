import { decodeBlockCount, prefillBlockCount, type RequestShape, type WorkerFacts } from "./worker-facts.ts";

/** Whether a worker could decode a request if nothing else ran there. */
export function canDecode(facts: WorkerFacts, request: RequestShape): boolean {
  return (
    facts.role !== "prefill" &&
    request.promptTokenCount + request.maxTokens <= facts.contextLength &&
    decodeBlockCount(request, facts.blockSize) <= facts.blockCount
  );
}

/** Whether a prefill worker could compute a request's prompt if nothing else ran there. */
export function canPrefill(facts: WorkerFacts, request: RequestShape): boolean {
  return (
    facts.role === "prefill" &&
    request.promptTokenCount <= facts.contextLength &&
    prefillBlockCount(request, facts.blockSize) <= facts.blockCount
  );
}

/**
 * Whether the workers attached now could take a request for sure, were they idle: found after a few of them, where `checkFit` asks all. False says
 * nothing.
 */
export function surelyFits(request: RequestShape, workers: Iterable<{ readonly facts: WorkerFacts }>): boolean {
  if (request.promptTokenCount < 1 || request.maxTokens < 1) return false;
  let decodes = false;
  let prefills = false;
  for (const { facts } of workers) {
    if (facts.model !== request.model) continue;
    if (!decodes && canDecode(facts, request)) decodes = true;
    if (!prefills && (facts.role === "mixed" ? canDecode(facts, request) : canPrefill(facts, request))) prefills = true;
    if (decodes && prefills) return true;
  }
  return false;
}

export type FitOutcome =
  | { readonly kind: "possible" }
  | { readonly kind: "never"; readonly field: string; readonly message: string };

/**
 * Whether a request could ever be placed on the workers known, however idle. Where a needed kind of worker is missing the answer
 * is `possible`: it may come.
 */
export function checkFit(request: RequestShape, known: readonly WorkerFacts[]): FitOutcome {
  const { model, promptTokenCount, maxTokens } = request;
  if (promptTokenCount < 1) return never("prompt_token_count", "the prompt has no tokens; send at least one");
  if (maxTokens < 1) return never("max_tokens", "max_tokens is 0; use at least 1");
  if (known.length === 0) return { kind: "possible" };

  const serving = known.filter((facts) => facts.model === model);
  if (serving.length === 0) {
    const models = [...new Set(known.map((facts) => facts.model))].sort();
    return never("model", `model ${JSON.stringify(model)} is not served here; use ${models.join(" or ")}`);
  }
  const decoders = serving.filter((facts) => facts.role !== "prefill");
  if (decoders.length === 0 || decoders.some((facts) => canDecode(facts, request))) {
    return checkPrefill(request, serving);
  }
  const contextLength = Math.max(...decoders.map((facts) => facts.contextLength));
  const tokenCount = promptTokenCount + maxTokens;
  if (promptTokenCount >= contextLength) {
    return never("prompt_token_count", `the prompt has ${promptTokenCount} tokens; the context holds ${contextLength}`);
  }
  if (tokenCount > contextLength) {
    const room = contextLength - promptTokenCount;
    return never(
      "max_tokens",
      `${promptTokenCount} prompt tokens and max_tokens ${maxTokens} exceed the context of ${contextLength}; use max_tokens ${room} or less`,
    );
  }
  const { choiceCount = 1 } = request;
  if (choiceCount > 1 && decoders.some((facts) => canDecode(facts, { ...request, choiceCount: 1 }))) {
    return never(
      "n",
      `${choiceCount} answers of ${maxTokens} tokens exceed the largest KV pool; ask for fewer or shorter ones`,
    );
  }
  const poolTokenCount = Math.max(...decoders.map((facts) => facts.blockCount * facts.blockSize));
  return never(
    promptTokenCount >= poolTokenCount ? "prompt_token_count" : "max_tokens",
    `${promptTokenCount} prompt tokens and max_tokens ${maxTokens} exceed the largest KV pool, which holds ${poolTokenCount} tokens`,
  );
}

/** A prompt that no prefill worker holds is only hopeless where no mixed worker could take the whole request. */
function checkPrefill(request: RequestShape, serving: readonly WorkerFacts[]): FitOutcome {
  const prefillers = serving.filter((facts) => facts.role === "prefill");
  const isPossible =
    prefillers.length === 0 ||
    prefillers.some((facts) => canPrefill(facts, request)) ||
    serving.some((facts) => facts.role === "mixed" && canDecode(facts, request));
  if (isPossible) return { kind: "possible" };
  const poolTokenCount = Math.max(
    ...prefillers.map((facts) => Math.min(facts.blockCount * facts.blockSize, facts.contextLength)),
  );
  return never(
    "prompt_token_count",
    `the prompt has ${request.promptTokenCount} tokens; the largest prefill worker holds ${poolTokenCount}`,
  );
}

function never(field: string, message: string): FitOutcome {
  return { kind: "never", field, message };
}
