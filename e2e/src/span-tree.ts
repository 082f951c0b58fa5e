import { expect } from "vitest";

/** A span as every view of a trace has it. */
export interface TreeSpan {
  readonly spanId: string;
  /** Empty for the root. */
  readonly parentSpanId: string;
  readonly name: string;
}

/** Each span of a request that ran on two workers, with its parent. `prefill.chunk` is there once for each chunk, the others once. */
export const SPLIT_TREE: Readonly<Record<string, string | undefined>> = {
  "gateway.request": undefined,
  "router.place": "gateway.request",
  "gateway.generate": "gateway.request",
  "decode.generate": "gateway.generate",
  "decode.reserve": "decode.generate",
  "prefill.run": "decode.generate",
  "prefill.queue": "prefill.run",
  "sidecar.prefill": "prefill.run",
  "prefill.chunk": "sidecar.prefill",
  "kv.pull": "decode.generate",
  "kv.serve": "kv.pull",
  handover: "decode.generate",
  "decode.steps": "decode.generate",
};

/** The same for a request that one worker served whole: nothing is pulled, nothing handed over. */
export const AGGREGATED_TREE: Readonly<Record<string, string | undefined>> = Object.fromEntries(
  Object.entries(SPLIT_TREE).filter(([name]) => !["kv.pull", "kv.serve", "handover"].includes(name)),
);

export function namesOf(spans: readonly TreeSpan[]): readonly string[] {
  return [...new Set(spans.map((span) => span.name))].sort();
}

/** Every span of the tree is there, below the parent that it should have, and no other span is. */
export function expectTree(spans: readonly TreeSpan[], tree: Readonly<Record<string, string | undefined>>): void {
  expect(namesOf(spans)).toEqual(Object.keys(tree).sort());
  const byId = new Map(spans.map((span) => [span.spanId, span.name]));
  for (const { name, parentSpanId } of spans) {
    const parent = parentSpanId === "" ? undefined : (byId.get(parentSpanId) ?? "a span that is not in the trace");
    expect([name, parent]).toEqual([name, tree[name]]);
  }
  const counts = Map.groupBy(spans, (span) => span.name);
  for (const [name, { length }] of counts) if (name !== "prefill.chunk") expect([name, length]).toEqual([name, 1]);
}
