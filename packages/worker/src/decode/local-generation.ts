import { addNanos, KvasirError, msFromNanos, nanosFromMs, type SequenceEnd, type Token } from "@kvasir/core";
import { now } from "../clock.ts";
import { startQueueSpan, startSpan, traceparentOf } from "../tracing.ts";
import { Generation, type GenerationFacts } from "./generation.ts";

/** Aggregated: the prompt is computed here too. Answers with what cancels it. */
export function generateLocally(facts: GenerationFacts): { readonly done: Promise<void>; readonly cancel: () => void } {
  const generation = new Generation(facts);
  const { incarnation, request, arrivedAt, admissionWaitMs, tracer, traced, requestId, workerId } = facts;
  const { promptTokenIds, reuse } = request;
  const { sampling } = generation;
  const { outputTokenIds } = facts.choices[0];
  const { engine } = incarnation;
  const prefill = startSpan(tracer, "prefill.run", traced.context, {
    "kvasir.worker_id": workerId,
    "kvasir.request_id": requestId,
    "kvasir.prompt_tokens": promptTokenIds.length,
  });
  const queue = startQueueSpan(tracer, prefill, engine);
  let plannedAt = arrivedAt;
  const sequenceIds = engine.submitGroup(
    {
      ...{ kind: "local", promptTokenIds, outputTokenIds, sampling, maxTokens: sampling.maxTokens },
      traceparent: traceparentOf(prefill),
      branches: generation.branches(),
      reuse,
    },
    addNanos(arrivedAt, nanosFromMs(admissionWaitMs)),
    {
      admitted: () => generation.accepted(),
      refused: () => generation.fail(overloaded()),
      planned(cachedTokenCount) {
        plannedAt = now();
        const resident = Math.min(cachedTokenCount, promptTokenIds.length);
        facts.requests.lookedUp({ promptTokenCount: promptTokenIds.length, cachedTokenCount: resident });
        generation.cached({ resident });
        prefill.span.setAttribute("kvasir.cached_tokens", resident);
        queue.span.end();
        generation.timings.prefillQueueMs = msFromNanos(plannedAt - arrivedAt);
      },
      sampled(token: Token, tokenIndex: number, end: SequenceEnd | undefined) {
        if (tokenIndex === outputTokenIds.length) {
          const { timings } = generation;
          timings.prefillComputeMs = msFromNanos(now() - plannedAt);
          facts.requests.prefilled(timings.prefillComputeMs / 1_000);
          prefill.span.setAttributes({
            "kvasir.queue_ms": timings.prefillQueueMs ?? 0,
            "kvasir.compute_ms": timings.prefillComputeMs,
          });
          prefill.span.end();
          if (end === undefined) generation.stepsBegin();
        }
        generation.token(token, end);
      },
      failed: (error) => generation.fail(error),
    },
  );
  const settled = generation.done.finally(() => {
    for (const { span } of [queue, prefill]) if (span.isRecording()) span.end();
  });
  return {
    done: settled,
    cancel() {
      for (const sequenceId of sequenceIds) engine.close(sequenceId);
      generation.fail(new KvasirError({ reason: "cancelled", message: "the caller went away" }));
    },
  };
}

export function overloaded(): KvasirError {
  return new KvasirError({
    reason: "overloaded",
    message: "no blocks became free for this request in time; retry later or elsewhere",
    retryAfterMs: 500,
  });
}
