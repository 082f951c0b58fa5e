import { KvasirError } from "@kvasir/core";
import { type CachedTokens, type Placement, PlacementMode, type SampledToken } from "@kvasir/proto";
import { failSpan, type Telemetry } from "@kvasir/telemetry";
import { type Attributes, context, propagation, type Span, SpanKind, trace } from "@opentelemetry/api";
import type { FastifyReply, FastifyRequest } from "fastify";
import { RequestError } from "./http/openai-error.ts";
import { parseBody } from "./http/parse-body.ts";
import type { GatewayMetrics } from "./metrics.ts";
import { echoedEntries, type PromptLogprobs, promptLogprobs } from "./output/prompt-logprobs.ts";
import { chatShape, completionShape, type Tail } from "./output/response-shape.ts";
import { createTokenText } from "./output/token-text.ts";
import { tierOf, wishesOf } from "./placement-wishes.ts";
import type { Policies, SloDefaults } from "./policies.ts";
import type { PreparedRequest, ServedModel } from "./prepare.ts";
import { prepareBody } from "./prepare-body.ts";
import { constraintError, type FieldConstraint } from "./prepare-constraint.ts";
import { type ResponseWriter, sendError, streamWriter, wholeWriter } from "./response-writer.ts";
import type { RunningRequests } from "./running-requests.ts";
import { tenantScope } from "./tenant-scope.ts";
import { type GenerationEnd, generate, type Upstream } from "./upstream/generate.ts";
import type { SinkAnswer } from "./upstream/generation-context.ts";

export interface GenerationDeps {
  readonly model: ServedModel;
  readonly upstream: Upstream;
  readonly telemetry: Telemetry;
  readonly metrics: GatewayMetrics;
  readonly running: RunningRequests;
  /** Under which tenants' scopes are derived. */
  readonly tenantSecret: string;
  /** Defaults by tenant and model. */
  readonly policies: Policies;
  /** Targets of requests for which nobody else names any. */
  readonly slo: SloDefaults;
  readonly requestTimeoutMs: number;
  readonly stallTimeoutMs: number;
  readonly resumeTimeoutMs: number;
}

/** One request from its bytes to its last one, for both endpoints. */
export async function serveGeneration(
  deps: GenerationDeps,
  endpoint: "chat" | "completion",
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<FastifyReply> {
  const arrivedAt = performance.now();
  const { metrics, model, running, telemetry } = deps;
  const parent = propagation.extract(context.active(), request.headers);
  const operation = endpoint === "chat" ? "chat" : "text_completion";
  const span = telemetry.tracer.startSpan("gateway.request", { kind: SpanKind.SERVER }, parent);
  const spanContext = trace.setSpan(parent, span);
  const traceId = span.spanContext().traceId;
  span.setAttributes({
    "gen_ai.operation.name": operation,
    "gen_ai.provider.name": "kvasir",
    "kvasir.request_id": request.id,
  });
  reply.header("x-kvasir-trace-id", traceId);

  const abort = new AbortController();
  const timer = setTimeout(() => {
    const message = `the request took longer than ${deps.requestTimeoutMs} ms`;
    abort.abort(new KvasirError({ reason: "deadline_exceeded", message }));
  }, deps.requestTimeoutMs);
  const onClose = () => {
    if (reply.raw.writableFinished) return;
    metrics.aborted.inc();
    abort.abort(new KvasirError({ reason: "cancelled", message: "the client went away" }));
  };
  reply.raw.once("close", onClose);
  running.add(abort);
  reply.raw.once("close", () => running.delete(abort));
  metrics.active.inc();
  let writer: ResponseWriter | undefined;
  let status = 200;
  let constraint: FieldConstraint | undefined;
  try {
    const prepared = await prepare(model, endpoint, request.body);
    constraint = prepared.sampling.constraint;
    const wishes = wishesOf(request.headers, prepared.wishes, model.name, deps.tenantSecret, deps.policies, deps.slo);
    let placement: Placement | undefined;
    const shapeFacts = {
      id: `${endpoint === "chat" ? "chatcmpl" : "cmpl"}-${request.id}`,
      model: model.name,
      createdAtUnixS: Math.floor(Date.now() / 1000),
      withLogprobs: prepared.sampling.logprobs,
      withUsage: prepared.includeUsage,
      // Told to those who asked, and where it is not what was asked for.
      serviceTier: () => {
        if (prepared.wishes.serviceTier === undefined && placement?.isBestEffort !== true) return undefined;
        return tierOf(placement?.serviceClass ?? wishes.serviceClass);
      },
    };
    span.setAttributes({ ...requestAttributes(model, prepared), "gen_ai.response.id": shapeFacts.id });
    const shape = endpoint === "chat" ? chatShape(shapeFacts) : completionShape(shapeFacts);
    writer = prepared.stream
      ? streamWriter(reply, shape, prepared.includeUsage)
      : wholeWriter(reply, shape, prepared.choiceCount);
    const onPlaced = (latest: Placement): void => {
      placement = latest;
    };
    await run(deps, prepared, writer, span, onPlaced, {
      requestId: request.id,
      model: model.name,
      tenantScope: tenantScope(deps.tenantSecret, request.headers.authorization, prepared.cacheSalt),
      wishes,
      context: spanContext,
      tracer: telemetry.tracer,
      signal: abort.signal,
      stallTimeoutMs: deps.stallTimeoutMs,
      resumeTimeoutMs: deps.resumeTimeoutMs,
      expiresAtMs: arrivedAt + deps.requestTimeoutMs,
      arrivedAt,
      traceId,
    });
  } catch (thrown) {
    const error = constraintError(thrown, constraint);
    failSpan(span, error);
    if (!(error instanceof KvasirError || error instanceof RequestError)) {
      telemetry.logger.error({ err: error, requestId: request.id, traceId }, "a request failed");
    }
    status = reply.raw.destroyed ? 499 : (writer?.fail(error) ?? sendError(reply, error));
    if (reply.raw.destroyed && !reply.sent) reply.hijack();
  } finally {
    clearTimeout(timer);
    reply.raw.removeListener("close", onClose);
    metrics.active.dec();
    metrics.requests.inc({ endpoint, status: String(status) });
    metrics.duration.observe((performance.now() - arrivedAt) / 1000);
    span.setAttribute("http.response.status_code", status);
    span.end();
  }
  return reply;
}

type RunFacts = Parameters<typeof generate>[2] & { readonly traceId: string };

async function run(
  deps: GenerationDeps,
  prepared: PreparedRequest,
  writer: ResponseWriter,
  span: Span,
  onPlaced: (placement: Placement) => void,
  facts: RunFacts,
): Promise<void> {
  const { metrics } = deps;
  const { tokenizer } = deps.model;
  const { stops, keepStop } = prepared;
  const options = { stops, keepStop, withLogprobs: prepared.sampling.logprobs };
  const choices = Array.from({ length: prepared.choiceCount }, () => ({
    text: createTokenText(tokenizer, options),
    tokenCount: 0,
    firstAt: 0,
    lastAt: 0,
    finish: "" as string,
  }));
  metrics.promptTokens.inc(prepared.promptTokenIds.length);
  let shownPrompt: PromptLogprobs | undefined;
  let promptToken: SampledToken | undefined;
  let ttftMs = 0;
  let cached: CachedTokens | undefined;
  const echoOnce = (choice: number) => {
    if (prepared.echo && choices[choice]?.tokenCount === 0) echo(tokenizer, prepared, promptToken, writer, choice);
  };
  const end = await generate(deps.upstream, prepared, facts, {
    placed: onPlaced,
    tokens(tokens, index): SinkAnswer {
      const choice = choices[index];
      if (choice === undefined) return "enough";
      const now = performance.now();
      if (ttftMs === 0) {
        ttftMs = now - facts.arrivedAt;
        metrics.ttft.observe(ttftMs / 1000);
      }
      if (index === 0 && choice.tokenCount === 0) {
        promptToken = tokens[0];
        if (prepared.showPromptLogprobs) shownPrompt = promptLogprobs(tokenizer, promptToken);
      }
      echoOnce(index);
      if (choice.tokenCount === 0) choice.firstAt = now;
      else metrics.tbt.observe((now - choice.lastAt) / 1000);
      choice.lastAt = now;
      choice.tokenCount += tokens.length;
      metrics.outputTokens.inc(tokens.length);
      const piece = choice.text.push(tokens);
      const full = writer.piece(index, piece.text, piece.logprobs);
      return piece.stopped ? "enough" : (full ?? "more");
    },
    cached(tokens) {
      cached = tokens;
    },
    ended(index, finish, byStopString) {
      const choice = choices[index];
      if (choice === undefined) return;
      echoOnce(index);
      choice.finish = finish;
      writer.endChoice(index, byStopString ? "" : choice.text.flush(), finish);
    },
  });
  const tokenCount = choices.reduce((sum, choice) => sum + choice.tokenCount, 0);
  const tail = {
    ...(shownPrompt === undefined ? {} : { prompt_logprobs: shownPrompt }),
    ...tailOf(prepared, end, tokenCount, ttftMs, facts.traceId, cached),
  };
  metrics.cachedTokens.inc(tail.usage.prompt_tokens_details.cached_tokens);
  if (end.placementCount > 1) metrics.retries.inc(end.placementCount - 1);
  if (end.resumeCount > 0) metrics.resumes.inc(end.resumeCount);
  metrics.placements.inc({ mode: tail.kvasir.mode });
  const finishes = choices.map((choice) => choice.finish);
  span.setAttributes(responseAttributes(end, tail, finishes));
  const [first] = choices;
  if (first !== undefined && first.tokenCount > 1) {
    span.setAttribute("kvasir.measured_tbt_ms", round((first.lastAt - first.firstAt) / (first.tokenCount - 1)));
  }
  writer.finish(tail);
}

/** The prompt as the beginning of the text, with its log-probabilities when those are shown. */
function echo(
  tokenizer: ServedModel["tokenizer"],
  { promptTokenIds, sampling }: PreparedRequest,
  first: SampledToken | undefined,
  writer: ResponseWriter,
  choice: number,
): void {
  const entries = sampling.logprobs ? echoedEntries(tokenizer, promptTokenIds, first) : [];
  const detokenizer = tokenizer.createDetokenizer();
  void writer.piece(choice, detokenizer.push(promptTokenIds) + detokenizer.flush(), entries);
}

async function prepare(model: ServedModel, endpoint: "chat" | "completion", body: unknown): Promise<PreparedRequest> {
  if (body instanceof Uint8Array) return prepareBody(model, endpoint, parseBody(body));
  throw new RequestError("body is missing; send a JSON object", { param: "body", code: "invalid_json" });
}

function tailOf(
  prepared: PreparedRequest,
  end: GenerationEnd,
  tokenCount: number,
  ttftMs: number,
  traceId: string,
  cached: CachedTokens | undefined,
): Tail {
  const { placement, finished } = end;
  const split = placement.mode === PlacementMode.SPLIT;
  const decodeWorker = placement.decode?.workerId ?? "";
  const timings = finished?.timings;
  const { resident = 0, remoteWorker = 0, storeDram = 0, storeDisk = 0, blended = 0 } = cached ?? {};
  return {
    usage: {
      prompt_tokens: prepared.promptTokenIds.length,
      completion_tokens: tokenCount,
      total_tokens: prepared.promptTokenIds.length + tokenCount,
      prompt_tokens_details: { cached_tokens: resident + remoteWorker + storeDram + storeDisk },
    },
    kvasir: {
      trace_id: traceId,
      mode: split ? "split" : "aggregated",
      // Not always the one that was placed on: what is lost is computed elsewhere.
      prefill_worker: finished?.prefillWorkerId || (split ? (placement.prefill?.workerId ?? "") : decodeWorker),
      decode_worker: decodeWorker,
      ttft_ms: round(ttftMs),
      predicted_ttft_ms: round(placement.predictedTtftMs),
      kv_bytes_moved: Number(finished?.kvBytesMoved ?? 0n),
      cached_tokens: { resident, remote_worker: remoteWorker, store_dram: storeDram, store_disk: storeDisk, blended },
      // Their KV was converted on its way, so that tokens may differ from those of another placement.
      approximate_prompt_tokens: finished?.approximatePromptTokens ?? 0,
      placement_reason: placement.reason,
      best_effort: placement.isBestEffort,
      local_prefill: placement.localPrefill,
      resumes: end.resumeCount,
      timings: {
        prefill_queue_ms: round(timings?.prefillQueueMs ?? 0),
        prefill_compute_ms: round(timings?.prefillComputeMs ?? 0),
        kv_transfer_ms: round(timings?.kvTransferMs ?? 0),
        handover_ms: round(timings?.handoverMs ?? 0),
        first_token_ms: round(timings?.firstTokenMs ?? 0),
        decode_ms: round(timings?.decodeMs ?? 0),
      },
    },
  };
}

function round(ms: number): number {
  return Math.round(ms * 100) / 100;
}

function requestAttributes(model: ServedModel, prepared: PreparedRequest): Attributes {
  return {
    "gen_ai.request.model": model.name,
    "gen_ai.request.max_tokens": prepared.sampling.maxTokens,
    "gen_ai.request.temperature": prepared.sampling.temperature,
    "gen_ai.request.top_p": prepared.sampling.topP,
    "gen_ai.request.top_k": prepared.sampling.topK,
    "gen_ai.request.stream": prepared.stream,
    "gen_ai.response.model": model.name,
    "gen_ai.usage.input_tokens": prepared.promptTokenIds.length,
  };
}

function responseAttributes(end: GenerationEnd, { usage, kvasir }: Tail, finishes: readonly string[]): Attributes {
  return {
    "gen_ai.usage.output_tokens": usage.completion_tokens,
    "gen_ai.usage.cache_read.input_tokens": usage.prompt_tokens_details.cached_tokens,
    "gen_ai.response.finish_reasons": [...finishes],
    "gen_ai.response.time_to_first_chunk": kvasir.ttft_ms / 1000,
    "kvasir.mode": kvasir.mode,
    "kvasir.prefill_worker": kvasir.prefill_worker,
    "kvasir.decode_worker": kvasir.decode_worker,
    "kvasir.predicted_ttft_ms": kvasir.predicted_ttft_ms,
    "kvasir.measured_ttft_ms": kvasir.ttft_ms,
    "kvasir.predicted_tbt_ms": round(end.placement.predictedTbtMs),
    "kvasir.kv_bytes_moved": kvasir.kv_bytes_moved,
    "kvasir.placements": end.placementCount,
    "kvasir.resumes": end.resumeCount,
    "kvasir.local_prefill": kvasir.local_prefill,
    "kvasir.best_effort": kvasir.best_effort,
  };
}
