import { addNanos, KvasirError, msFromNanos, nanosFromMs, type SequenceEnd, type Token } from "@kvasir/core";
import { now } from "../clock.ts";
import { endSpan, startSpan, type Traced, traceparentOf } from "../tracing.ts";
import { Generation, type GenerationFacts } from "./generation.ts";

/** Aggregated: the prompt is computed here too. Answers with what cancels it. */
export function generateLocally(facts: GenerationFacts): { readonly done: Promise<void>; readonly cancel: () => void } {
  const generation = new Generation(facts);
  const { incarnation, request, arrivedAt, admissionWaitMs, tracer, traced, requestId, workerId } = facts;
  const { promptTokenIds } = request;
  const { sampling } = generation;
  const { outputTokenIds } = facts.choices[0];
  const { engine } = incarnation;
  let prefill: Traced | undefined;
  let plannedAt = arrivedAt;
  const sequenceIds = engine.submitGroup(
    {
      ...{ kind: "local", promptTokenIds, outputTokenIds, sampling, maxTokens: sampling.maxTokens },
      traceparent: traceparentOf(traced),
      branches: generation.branches(),
    },
    addNanos(arrivedAt, nanosFromMs(admissionWaitMs)),
    {
      admitted() {
        generation.accepted();
        prefill = startSpan(tracer, "prefill.run", traced.context, {
          "kvasir.worker_id": workerId,
          "kvasir.request_id": requestId,
          "kvasir.prompt_tokens": promptTokenIds.length,
        });
      },
      refused: () => generation.fail(overloaded()),
      planned() {
        plannedAt = now();
        generation.timings.prefillQueueMs = msFromNanos(plannedAt - arrivedAt);
      },
      sampled(token: Token, tokenIndex: number, end: SequenceEnd | undefined) {
        if (tokenIndex === outputTokenIds.length) {
          generation.timings.prefillComputeMs = msFromNanos(now() - plannedAt);
          if (prefill) endSpan(prefill.span);
          prefill = undefined;
          if (end === undefined) generation.stepsBegin();
        }
        generation.token(token, end);
      },
      failed: (error) => generation.fail(error),
    },
  );
  const settled = generation.done.finally(() => prefill?.span.end());
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
