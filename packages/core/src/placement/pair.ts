import type { WorkerFacts } from "./worker-facts.ts";

/** What the KV of two workers must have in common for it to move between them; block size, element type and shards may differ. */
export interface KvModel {
  readonly modelRevision: string;
  readonly layerCount: number;
  readonly kvHeadCount: number;
  readonly headSize: number;
  readonly rope: string;
}

/** A pair of workers that never serves a request together. */
export interface RefusedPair {
  readonly workerId: string;
  readonly reason: string;
}

/** Why KV cannot move between two workers, with the values of both; undefined when it can. */
export function kvDifference(a: WorkerFacts, b: WorkerFacts): string | undefined {
  if (a.fingerprint === b.fingerprint) return undefined;
  const [ours, theirs] = [a.kvModel, b.kvModel];
  const differences = (["modelRevision", "layerCount", "kvHeadCount", "headSize", "rope"] as const)
    .filter((field) => ours[field] !== theirs[field])
    .map((field) => `${NAMES[field]} is ${shown(ours[field])} and ${shown(theirs[field])}`);
  return differences.length > 0 ? differences.join(", ") : `fingerprint is ${a.fingerprint} and ${b.fingerprint}`;
}

/**
 * The pairs with workers of the same model that are refused when a worker registers: one computes prompts and the other would decode from
 * its KV, but cannot. In the order of ids.
 */
export function refusedPairs(facts: WorkerFacts, others: Iterable<WorkerFacts>): readonly RefusedPair[] {
  const refused: RefusedPair[] = [];
  for (const other of others) {
    const handOver =
      (facts.role === "prefill") !== (other.role === "prefill") && ![facts.role, other.role].includes("mixed");
    if (!handOver || facts.model !== other.model) continue;
    const reason = kvDifference(facts, other);
    if (reason !== undefined) refused.push({ workerId: other.workerId, reason });
  }
  return refused.sort((a, b) => (a.workerId < b.workerId ? -1 : 1));
}

const NAMES = {
  modelRevision: "model_revision",
  layerCount: "layer_count",
  kvHeadCount: "kv_head_count",
  headSize: "head_size",
  rope: "rope",
} as const;

/** A revision is a digest of 64 digits: its beginning tells two apart. */
function shown(value: string | number): string {
  return typeof value === "string" && value.length > 40 ? value.slice(0, 12) : `${value}`;
}
