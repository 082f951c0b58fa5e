import { readFileSync } from "node:fs";
import type { EvictionPolicy, Instant } from "@kvasir/core";

/** One request of a trace in Mooncake's form: an id stands for the whole text up to the end of its block. */
export interface TracedRequest {
  readonly timestamp: number;
  readonly hash_ids: readonly number[];
}

export interface ReplayResult {
  /** Blocks asked for. */
  readonly asked: number;
  /** Of them, blocks of the longest prefix that was held. */
  readonly hits: number;
  /** Blocks that came in. */
  readonly stored: number;
}

const BLOCK_TOKENS = 512;

export function readTrace(path: string): readonly TracedRequest[] {
  const lines = readFileSync(path, "utf8").trim().split("\n");
  return lines.map((line) => JSON.parse(line) as TracedRequest);
}

/** The trace `times` times in a row, each time with new conversations; the block that all begin with stays the same. */
export function repeated(trace: readonly TracedRequest[], times: number): TracedRequest[] {
  const idCount = 1 + trace.reduce((most, { hash_ids }) => Math.max(most, ...hash_ids), 0);
  const span = (trace.at(-1)?.timestamp ?? 0) + 3000;
  return Array.from({ length: times }, (_, round) =>
    trace.map(({ timestamp, hash_ids }) => ({
      timestamp: timestamp + round * span,
      hash_ids: hash_ids.map((id) => (id === 0 ? 0 : id + round * idCount)),
    })),
  ).flat();
}

/** Spreads an id over 32 bits, as a digest would. */
const keyBitsOf = (id: number) => Math.imul(id ^ 0x5bd1e995, 0x9e3779b1) ^ (id >>> 7);

/**
 * One cache of `capacity` blocks before all requests. A hit is a block that is held with all blocks before it; afterwards all blocks of the
 * request are held, ends first, as far as `admits` lets them in.
 */
export function replay(
  trace: readonly TracedRequest[],
  capacity: number,
  policyOf: (slotCount: number) => EvictionPolicy,
  admits: (keyBits: number, isFull: boolean) => boolean = () => true,
): ReplayResult {
  const longest = trace.reduce((most, { hash_ids }) => Math.max(most, hash_ids.length), 0);
  const policy = policyOf(capacity + longest);
  const slots = new Map<number, number>();
  const ids = new Int32Array(capacity + longest);
  const free = Array.from(ids.keys()).reverse();
  let [asked, hits, stored] = [0, 0, 0];
  for (const { timestamp, hash_ids } of trace) {
    asked += hash_ids.length;
    const miss = hash_ids.findIndex((id) => !slots.has(id));
    hits += miss === -1 ? hash_ids.length : miss;
    const now = (timestamp * 1e6) as Instant;
    for (let index = hash_ids.length - 1; index >= 0; index--) {
      const id = hash_ids[index] as number;
      const facts = { keyBits: keyBitsOf(id), position: index * BLOCK_TOKENS, worth: 1 };
      const held = slots.get(id);
      if (held !== undefined) policy.touch(held, facts, now);
      else if (admits(facts.keyBits, slots.size >= capacity)) {
        const slot = free.pop() as number;
        ids[slot] = id;
        slots.set(id, slot);
        policy.insert(slot, facts, now);
        stored++;
      }
    }
    while (slots.size > capacity) {
      const slot = policy.evict() as number;
      slots.delete(ids[slot] as number);
      free.push(slot);
    }
  }
  return { asked, hits, stored };
}
