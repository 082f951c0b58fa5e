import { candidateName, type PlacementDecision, type RequestShape } from "@kvasir/core";
import { failSpan } from "@kvasir/telemetry";
import { type Context, type Span, SpanKind, type Tracer } from "@opentelemetry/api";

/** Candidates listed in a span; a large cluster has more than anybody reads. */
const CANDIDATE_MAX = 8;

/** The span `router.place`: from the question for one placement to its answer. */
export class PlaceSpan {
  readonly #span: Span;

  constructor(tracer: Tracer, parent: Context, requestId: string, request: RequestShape, retryCount: number) {
    const attributes = {
      "kvasir.request_id": requestId,
      "gen_ai.request.model": request.model,
      "kvasir.prompt_tokens": request.promptTokenCount,
      "gen_ai.request.max_tokens": request.maxTokens,
      ...(retryCount > 0 ? { "kvasir.retry": retryCount } : {}),
    };
    this.#span = tracer.startSpan("router.place", { kind: SpanKind.SERVER, attributes }, parent);
  }

  queued(position: number): void {
    this.#span.addEvent("queued", { "kvasir.position": position });
  }

  placed(decision: PlacementDecision): void {
    const { candidates } = decision;
    const [best] = candidates;
    this.#span.setAttributes({
      "kvasir.mode": best.mode,
      "kvasir.local_prefill": best.isLocalPrefill,
      ...(best.prefill === undefined ? {} : { "kvasir.prefill": best.prefill.facts.workerId }),
      "kvasir.decode": best.decode.facts.workerId,
      "kvasir.queue_wait_ms": decision.waitedMs,
      "kvasir.predicted_ttft_ms": decision.predictedTtftMs,
      "kvasir.predicted_tbt_ms": decision.predictedTbtMs,
      "kvasir.candidates": candidates.length,
      "kvasir.scores": candidates
        .slice(0, CANDIDATE_MAX)
        .map((candidate) => `${candidateName(candidate)}: ${candidate.ttftMs.toFixed(1)} ms`)
        .join("; "),
      "kvasir.reason": decision.reason,
    });
    this.#span.end();
  }

  failed(error: unknown): void {
    failSpan(this.#span, error);
    this.#span.end();
  }
}
