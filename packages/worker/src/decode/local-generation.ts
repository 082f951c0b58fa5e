import { addNanos, KvasirError, msFromNanos, nanosFromMs, type SequenceEnd, type Token } from "@kvasir/core";
import type { PrefixFetch as FetchPlan } from "@kvasir/proto";
import { now } from "../clock.ts";
import { beginFetch, NOTHING_FETCHED } from "../fetch/begin-fetch.ts";
import type { Lenders } from "../fetch/borrow.ts";
import type { PrefixFetch } from "../fetch/prefix-fetch.ts";
import { startQueueSpan, startSpan, traceparentOf } from "../tracing.ts";
import { Generation, type GenerationFacts } from "./generation.ts";

export interface LocalFacts extends GenerationFacts {
  readonly lenders: Lenders;
  /** What another worker or a store has cached, by the router's plan. */
  readonly fetch: FetchPlan | undefined;
}

/** Aggregated: the prompt is computed here too. Answers with what cancels it. */
export function generateLocally(facts: LocalFacts): { readonly done: Promise<void>; readonly cancel: () => void } {
  const generation = new Generation(facts);
  const { incarnation, request, arrivedAt, admissionWaitMs, tracer, traced, requestId, workerId } = facts;
  const { promptTokenIds } = request;
  const reuse = { ...request.reuse, fetches: facts.fetch !== undefined };
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
  let resident = 0;
  let fetched = NOTHING_FETCHED;
  let fetch: PrefixFetch | undefined;
  const sequenceIds = engine.submitGroup(
    {
      ...{ kind: "local", promptTokenIds, outputTokenIds, sampling, maxTokens: sampling.maxTokens },
      traceparent: traceparentOf(prefill),
      branches: generation.branches(),
      reuse,
    },
    addNanos(arrivedAt, nanosFromMs(admissionWaitMs)),
    {
      admitted(blockIds, cachedTokenCount) {
        generation.accepted();
        const [sequenceId] = sequenceIds;
        const { fetch: plan, lenders, requests } = facts;
        fetch = beginFetch(
          { incarnation, sequenceId, blockIds, cachedTokenCount },
          { plan, request, lenders, traced: prefill, requests },
          (tokens, approximateTokenCount) => {
            fetched = tokens;
            generation.approximateTokenCount = approximateTokenCount;
          },
        );
      },
      refused: () => generation.fail(overloaded()),
      planned(cachedTokenCount) {
        plannedAt = now();
        resident = Math.min(cachedTokenCount, promptTokenIds.length);
        facts.requests.lookedUp({ promptTokenCount: promptTokenIds.length, cachedTokenCount: resident });
        prefill.span.setAttribute("kvasir.cached_tokens", resident);
        queue.span.end();
        generation.timings.prefillQueueMs = msFromNanos(plannedAt - arrivedAt);
      },
      prompted: () => fetch?.wake(),
      sampled(token: Token, tokenIndex: number, end: SequenceEnd | undefined) {
        if (tokenIndex === outputTokenIds.length) {
          fetch?.firstToken();
          const { timings } = generation;
          generation.cached({ resident, ...fetched });
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
    fetch?.stop();
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
