import { candidateName, type KvRate, type PlacementDecision, type RequestShape } from "@kvasir/core";
import { FineClock, failSpan } from "@kvasir/telemetry";
import { type Context, type HrTime, type Span, SpanKind, type Tracer, trace } from "@opentelemetry/api";

/** Candidates listed in a span; a large cluster has more than anybody reads. */
const CANDIDATE_MAX = 8;

const clock = new FineClock();

/**
 * The span `router.place`: from the question for one placement to its answer, with `router.queue` below it for the wait, if there was one.
 * It is handed in when the first token is there, so that the measured time stands beside the predicted one.
 */
export class PlaceSpan {
  readonly #tracer: Tracer;
  readonly #parent: Context;
  readonly #span: Span;
  readonly #startedAt: HrTime;
  #queue: Span | undefined;
  #position = 0;
  #placedAt: HrTime | undefined;

  constructor(tracer: Tracer, parent: Context, requestId: string, request: RequestShape, retryCount: number) {
    const attributes = {
      "kvasir.request_id": requestId,
      "gen_ai.request.model": request.model,
      "kvasir.prompt_tokens": request.promptTokenCount,
      "gen_ai.request.max_tokens": request.maxTokens,
      "kvasir.tenant": request.tenant ?? "",
      "kvasir.service_class": request.serviceClass ?? "default",
      "kvasir.kv_accuracy": request.kvAccuracy ?? "exact",
      ...(request.priority ? { "kvasir.priority": request.priority } : {}),
      ...(request.objectives?.ttftMs === undefined ? {} : { "kvasir.ttft_target_ms": request.objectives.ttftMs }),
      ...(request.objectives?.tbtMs === undefined ? {} : { "kvasir.tbt_target_ms": request.objectives.tbtMs }),
      ...(retryCount > 0 ? { "kvasir.retry": retryCount } : {}),
    };
    this.#tracer = tracer;
    this.#parent = parent;
    this.#startedAt = clock.now();
    const options = { kind: SpanKind.SERVER, attributes, startTime: this.#startedAt };
    this.#span = tracer.startSpan("router.place", options, parent);
  }

  queued(position: number): void {
    const attributes = { "kvasir.position": position };
    if (this.#queue === undefined) {
      const below = trace.setSpan(this.#parent, this.#span);
      this.#queue = this.#tracer.startSpan("router.queue", { attributes, startTime: clock.now() }, below);
    } else if (position !== this.#position) this.#queue.addEvent("moved up", attributes, clock.now());
    this.#position = position;
  }

  placed(decision: PlacementDecision): void {
    const { candidates } = decision;
    const [best] = candidates;
    this.#span.setAttributes({
      "kvasir.mode": best.mode,
      "kvasir.local_prefill": best.isLocalPrefill,
      ...(best.prefill === undefined ? {} : { "kvasir.prefill": best.prefill.facts.workerId }),
      "kvasir.decode": best.decode.facts.workerId,
      ...(best.fetch === undefined
        ? {}
        : {
            "kvasir.fetch_holder": best.fetch.holder.facts.workerId,
            "kvasir.predicted_fetch_ms": best.fetch.fetchMs,
            ...believed("fetch", best.fetch.rate),
          }),
      ...(best.handOver === undefined ? {} : believed("handover", best.handOver.rate)),
      "kvasir.cached_tokens": decision.promptTokenCount - best.uncachedTokenCount,
      "kvasir.queue_wait_ms": decision.waitedMs,
      "kvasir.served_class": decision.serviceClass,
      "kvasir.best_effort": decision.isBestEffort,
      "kvasir.predicted_queue_ms": best.ttft.queueMs,
      "kvasir.predicted_compute_ms": best.ttft.computeMs,
      "kvasir.predicted_handover_ms": best.ttft.tailMs,
      "kvasir.predicted_output_tokens": decision.predictedOutputTokens,
      "kvasir.predicted_ttft_ms": decision.predictedTtftMs,
      "kvasir.predicted_tbt_ms": decision.predictedTbtMs,
      "kvasir.candidates": candidates.length,
      "kvasir.scores": candidates
        .slice(0, CANDIDATE_MAX)
        .map((candidate) => `${candidateName(candidate)}: ${candidate.ttftMs.toFixed(1)} ms`)
        .join("; "),
      "kvasir.reason": decision.reason,
    });
    this.#placedAt = clock.now();
    this.#queue?.end(this.#placedAt);
  }

  /** The client has its first token; both times count from the question. */
  firstToken(): void {
    if (this.#span.isRecording()) {
      this.#span.setAttribute("kvasir.measured_ttft_ms", Math.round(msBetween(this.#startedAt, clock.now()) * 10) / 10);
    }
    this.close();
  }

  /** Nothing more will be known. */
  close(): void {
    if (this.#span.isRecording()) this.#span.end(this.#placedAt ?? clock.now());
  }

  failed(error: unknown): void {
    const now = clock.now();
    if (this.#queue?.isRecording()) {
      failSpan(this.#queue, error);
      this.#queue.end(now);
    }
    failSpan(this.#span, error);
    this.#span.end(now);
  }
}

/** A link as the prediction took it; without an age, as one that was never measured. */
function believed(
  of: "fetch" | "handover",
  { bytesPerSecond, ageMs, isOfSource }: KvRate,
): Record<string, number | boolean> {
  return {
    [`kvasir.${of}_bytes_per_second`]: bytesPerSecond,
    ...(ageMs === undefined ? {} : { [`kvasir.${of}_rate_age_ms`]: ageMs }),
    ...(isOfSource ? { [`kvasir.${of}_rate_of_source`]: true } : {}),
  };
}

function msBetween(from: HrTime, to: HrTime): number {
  return (to[0] - from[0]) * 1_000 + (to[1] - from[1]) / 1e6;
}
