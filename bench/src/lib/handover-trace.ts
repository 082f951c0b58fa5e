import type { LocalCluster } from "@kvasir/cli";

const SPANS_MAX_MS = 10_000;

/** Milliseconds of one request's hand-over. */
export interface Handover {
  /** End of the last prefill step to the batch of the decode worker. */
  readonly wholeMs: number;
  /** End of the last prefill step to the last verified block; below zero where the last layer's frames left before the step's end was told. */
  readonly verifiedMs: number;
  /** The last verified block to the step that the sequence joins: mostly the rest of the step that runs. */
  readonly joinMs: number;
  /** KV that came over the wire. */
  readonly bytes: number;
  /** First to last of it; the wait for what is being computed included. */
  readonly transferMs: number;
}

/** Reads one request's hand-over from its trace, once all its spans are there. */
export async function handoverOf(cluster: LocalCluster, traceId: string): Promise<Handover> {
  const deadline = performance.now() + SPANS_MAX_MS;
  for (;;) {
    const spans = await cluster.spans(traceId);
    const chunks = spans.filter((span) => span.name === "prefill.chunk");
    const pull = spans.find((span) => span.name === "kv.pull");
    const steps = spans.find((span) => span.name === "decode.steps");
    const last = chunks.toSorted((a, b) => msBetween(b.endUnixNanos, a.endUnixNanos)).at(-1);
    if (pull && steps && last) {
      return {
        wholeMs: msBetween(last.endUnixNanos, steps.startUnixNanos),
        verifiedMs: msBetween(last.endUnixNanos, pull.endUnixNanos),
        joinMs: msBetween(pull.endUnixNanos, steps.startUnixNanos),
        bytes: Number(pull.attributes["kvasir.bytes"]),
        transferMs: Number(pull.attributes["kvasir.transfer_ms"]),
      };
    }
    if (performance.now() > deadline) {
      throw new Error(
        `the trace ${traceId} has only ${spans.map((span) => span.name).join(", ")}: spans of its hand-over are missing`,
      );
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

function msBetween(fromUnixNanos: string, toUnixNanos: string): number {
  return Number(BigInt(toUnixNanos) - BigInt(fromUnixNanos)) / 1e6;
}
