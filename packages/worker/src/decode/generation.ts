import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { type Instant, type KvasirError, msFromNanos, type SequenceEnd, type Token } from "@kvasir/core";
import {
  type CachedTokensSchema,
  FinishReason,
  type GenerateTimingsSchema,
  type SamplingParams,
  SamplingParamsSchema,
} from "@kvasir/proto";
import type { Tracer } from "@opentelemetry/api";
import { now } from "../clock.ts";
import type { BranchRequest } from "../engine/engine.ts";
import type { Incarnation } from "../incarnation.ts";
import type { CheckedRequest, OpenChoice } from "../request-check.ts";
import type { GenerationOutcome, RequestMeter } from "../request-meter.ts";
import { endSpan, startSpan, type Traced } from "../tracing.ts";
import { type GenerateCall, TokenStream } from "./token-stream.ts";

/** Between two looks for progress before the first token; well below the silence that a gateway allows. */
const PROGRESS_INTERVAL_MS = 1_000;

export interface GenerationFacts {
  readonly call: GenerateCall;
  readonly incarnation: Incarnation;
  readonly request: CheckedRequest;
  /** Answers that are wanted; the first one's sequence computes the prompt for all. */
  readonly choices: readonly [OpenChoice, ...OpenChoice[]];
  /** Whether the end of each answer is told by itself. */
  readonly tellsChoices: boolean;
  /** Blocks to reserve for it. */
  readonly blockCount: number;
  readonly requestId: string;
  readonly workerId: string;
  readonly arrivedAt: Instant;
  readonly admissionWaitMs: number;
  readonly leaseMs: number;
  readonly tracer: Tracer;
  /** `decode.generate`; ended by the service. */
  readonly traced: Traced;
  readonly requests: RequestMeter;
}

type Timings = { -readonly [K in Exclude<keyof MessageInitShape<typeof GenerateTimingsSchema>, "$typeName">]?: number };

/**
 * What every generation does, however its prompt is computed: tokens to the client, times, spans and the end. `done` settles once,
 * as the call shall end.
 */
export class Generation {
  readonly facts: GenerationFacts;
  readonly #stream: TokenStream;
  readonly #done = Promise.withResolvers<void>();
  readonly #reserveSpan: Traced;
  readonly timings: Timings = {};
  /** Of the first answer that is wanted. */
  readonly sampling: SamplingParams;
  prefillWorkerId: string;
  kvBytesMoved = 0n;
  /** Prompt tokens whose KV is not what would have been computed here. */
  approximateTokenCount = 0;
  #firstTokenAt: Instant | undefined;
  #lastTokenAt: Instant | undefined;
  /** The last token of each answer. */
  readonly #tokenAt = new Map<number, Instant>();
  #tokenCount = 0;
  #openChoiceCount: number;
  /** How the first answer ended; told last. */
  #firstEnd: { readonly end: SequenceEnd; readonly token: Token } | undefined;
  #stepsSpan: Traced | undefined;
  #ended = false;
  #movedCount = 0;
  #toldProgress = 0;
  #progressTimer: NodeJS.Timeout | undefined;

  constructor(facts: GenerationFacts) {
    this.facts = facts;
    this.#openChoiceCount = facts.choices.length;
    this.sampling = samplingOf(facts.request.sampling, facts.choices[0]);
    this.prefillWorkerId = facts.workerId;
    this.#stream = new TokenStream(facts.call);
    this.#reserveSpan = startSpan(facts.tracer, "decode.reserve", facts.traced.context, {
      "kvasir.blocks": facts.blockCount,
      "kvasir.waiting": facts.incarnation.engine.scheduler.waitingCount,
    });
  }

  get done(): Promise<void> {
    return this.#done.promise;
  }

  get ended(): boolean {
    return this.#ended;
  }

  /** Capacity is reserved; the client is told. */
  accepted(): void {
    const reserveMs = msFromNanos(now() - this.facts.arrivedAt);
    endSpan(this.#reserveSpan.span);
    this.facts.requests.queued(reserveMs / 1_000);
    this.#stream.accepted(reserveMs);
    this.#toldProgress = this.facts.incarnation.engine.answeredCount;
    this.#progressTimer = setInterval(() => this.#tellProgress(), PROGRESS_INTERVAL_MS);
  }

  /** Tokens of the prompt that were not computed for this request; told with the first tokens. */
  cached(cached: MessageInitShape<typeof CachedTokensSchema>): void {
    this.#stream.tellCached(cached);
    const { resident = 0, remoteWorker = 0, storeDram = 0, storeDisk = 0, blended = 0 } = cached;
    this.facts.traced.span.setAttribute(
      "kvasir.cached_tokens",
      resident + remoteWorker + storeDram + storeDisk + blended,
    );
  }

  /** Something moved towards the first token. */
  moved(): void {
    this.#movedCount++;
  }

  /** Tells the gateway that the first token is worth waiting for, as long as there is a sign of it. */
  #tellProgress(): void {
    const progress = this.#movedCount + this.facts.incarnation.engine.answeredCount;
    if (progress > this.#toldProgress) this.#stream.progress();
    this.#toldProgress = progress;
  }

  /** A token for the client. A stop token ends the generation and is not passed on. */
  token(token: Token, end: SequenceEnd | undefined, choice = this.facts.choices[0].index): void {
    if (this.#ended) return;
    const instant = now();
    if (this.#stepsSpan) this.#sampleStep(this.#stepsSpan, instant);
    this.#meter(choice, instant);
    this.#lastTokenAt = instant;
    if (this.#firstTokenAt === undefined) {
      clearInterval(this.#progressTimer);
      this.#firstTokenAt = this.#lastTokenAt;
      this.timings.firstTokenMs = msFromNanos(this.#firstTokenAt - this.facts.arrivedAt);
      this.facts.traced.span.setAttribute("kvasir.first_token_ms", this.timings.firstTokenMs);
    }
    this.#tokenCount++;
    if (end !== "stop") this.#stream.push(token, choice);
    if (end === undefined) return;
    if (choice === this.facts.choices[0].index) this.#firstEnd = { end, token };
    this.#openChoiceCount--;
    if (this.facts.tellsChoices) this.#stream.choiceFinished({ choiceIndex: choice, ...finishOf(end, token) });
    if (this.#openChoiceCount === 0 && this.#firstEnd) this.#finish(this.#firstEnd.end, this.#firstEnd.token);
  }

  /** The answers beside the first, for the engine. */
  branches(): readonly BranchRequest[] {
    const [, ...others] = this.facts.choices;
    return others.map((choice) => ({
      sampling: samplingOf(this.facts.request.sampling, choice),
      outputTokenIds: choice.outputTokenIds,
      listener: {
        sampled: (token: Token, _tokenIndex: number, end: SequenceEnd | undefined) =>
          this.token(token, end, choice.index),
        failed: (error: KvasirError) => this.fail(error),
      },
    }));
  }

  /** The sequence is in the running batch from here on. */
  stepsBegin(): void {
    this.#stepsSpan ??= startSpan(this.facts.tracer, "decode.steps", this.facts.traced.context);
  }

  /** Notes some of the steps on their span: all of the first sixteen tokens, then fewer and fewer, so that their number stays small. */
  #sampleStep({ span }: Traced, instant: Instant): void {
    if (!isSampledToken(this.#tokenCount + 1) || !span.isRecording()) return;
    span.addEvent("step", {
      "kvasir.token": this.#tokenCount + 1,
      "kvasir.gap_ms": msFromNanos(instant - (this.#lastTokenAt ?? instant)),
      "kvasir.batch": this.facts.incarnation.engine.scheduler.load().runningCount,
    });
  }

  /** Gaps are between tokens of one answer; the first one of a resumed answer follows one that another worker sent. */
  #meter(choice: number, instant: Instant): void {
    const { requests, arrivedAt, choices } = this.facts;
    const before = this.#tokenAt.get(choice);
    this.#tokenAt.set(choice, instant);
    const isFirst = before === undefined && choices[0].outputTokenIds.length === 0;
    if (isFirst) requests.firstToken((instant - arrivedAt) / 1e9);
    else requests.nextToken((instant - (before ?? arrivedAt)) / 1e9);
  }

  fail(error: KvasirError): void {
    if (this.#ended) return;
    this.#close(error);
    this.#tellEnd(error.reason === "cancelled" ? "abort" : "error");
    this.#done.reject(error);
  }

  #finish(end: SequenceEnd, token: Token): void {
    this.timings.decodeMs = msFromNanos((this.#lastTokenAt ?? 0) - (this.#firstTokenAt ?? 0));
    this.#stream.finish({
      ...finishOf(end, token),
      timings: this.timings,
      prefillWorkerId: this.prefillWorkerId,
      decodeWorkerId: this.facts.workerId,
      kvBytesMoved: this.kvBytesMoved,
      approximatePromptTokens: this.approximateTokenCount,
    });
    this.#close(undefined);
    this.#tellEnd(end);
    this.#done.resolve();
  }

  #tellEnd(outcome: GenerationOutcome): void {
    const seconds = (now() - this.facts.arrivedAt) / 1e9;
    this.facts.requests.generated(outcome, { seconds, decodeSeconds: (this.timings.decodeMs ?? 0) / 1_000 });
  }

  #close(error: KvasirError | undefined): void {
    this.#ended = true;
    clearInterval(this.#progressTimer);
    if (this.#firstTokenAt === undefined && error) endSpan(this.#reserveSpan.span, error);
    this.#stepsSpan?.span.setAttribute("kvasir.decode_tokens", Math.max(0, this.#tokenCount - 1));
    if (this.#stepsSpan) endSpan(this.#stepsSpan.span, error);
    this.facts.traced.span.setAttributes({
      "kvasir.generated_tokens": this.#tokenCount,
      "kvasir.prefill_worker_id": this.prefillWorkerId,
      "kvasir.kv_bytes_moved": Number(this.kvBytesMoved),
      "kvasir.approximate_prompt_tokens": this.approximateTokenCount,
    });
  }
}

/** Each answer has its own seed; the prompt's log-probabilities are told once, with the very first token. */
function samplingOf(sampling: SamplingParams, { index, outputTokenIds }: OpenChoice): SamplingParams {
  if (index === 0 && outputTokenIds.length === 0) return sampling;
  const { promptLogprobs: _told, ...own } = sampling;
  return create(SamplingParamsSchema, { ...own, seed: BigInt.asUintN(64, sampling.seed + BigInt(index)) });
}

/** Eight tokens of every doubling: some 8·log2(n) of n, below the 128 events that a span keeps up to 100,000 tokens. */
function isSampledToken(tokenNumber: number): boolean {
  const stride = 2 ** Math.max(0, Math.floor(Math.log2(tokenNumber)) - 3);
  return tokenNumber % stride === 0;
}

function finishOf(end: SequenceEnd, token: Token): { readonly reason: FinishReason; readonly stopTokenId?: number } {
  return end === "stop" ? { reason: FinishReason.STOP, stopTokenId: token.tokenId } : { reason: FinishReason.LENGTH };
}
