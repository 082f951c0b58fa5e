import { type PrefixIndex, PrefixMatches } from "@kvasir/core";
import { percentile } from "./report.ts";

/** Conversation c has `length` blocks and is held by holders (7c + k) mod holders, k < copies; its first `shared` blocks are the same for all. */
export interface PrefixWorkload {
  readonly conversations: number;
  readonly length: number;
  readonly shared: number;
  readonly copies: number;
  readonly holders: number;
  /** Blocks in one event. */
  readonly batch: number;
  readonly matches: number;
}

export interface PrefixFigures {
  readonly storedPerSecond: number;
  readonly matchP50Ms: number;
  readonly matchP99Ms: number;
  readonly bytesPerHeldBlock: number;
}

/** The packed hashes of a conversation: 16 bytes from a permutation of (conversation, index), as even as those of SHA-256. */
export function conversationHashes(workload: PrefixWorkload, conversation: number): Uint8Array {
  const words = new Uint32Array(workload.length * 4);
  for (let index = 0; index < workload.length; index++) {
    const owner = index < workload.shared ? 0 : conversation + 1;
    for (let word = 0; word < 4; word++)
      words[index * 4 + word] = mix(Math.imul(owner, 0x9e3779b1) + index * 4 + word, word);
  }
  return new Uint8Array(words.buffer);
}

export function holderName(workload: PrefixWorkload, conversation: number, copy: number): string {
  return `h${(conversation * 7 + copy) % workload.holders}`;
}

/** Fills an index and looks conversations up; every answer is checked. */
export function runPrefixWorkload(
  workload: PrefixWorkload,
  index: PrefixIndex,
): { figures: PrefixFigures; sequences: Map<string, number> } {
  const { conversations, length, copies, batch } = workload;
  const sequences = new Map<string, number>();
  const before = process.memoryUsage.rss();
  let storeMs = 0;
  for (let conversation = 0; conversation < conversations; conversation++) {
    const hashes = conversationHashes(workload, conversation);
    const start = performance.now();
    for (let copy = 0; copy < copies; copy++) {
      const holderId = holderName(workload, conversation, copy);
      let sequence = sequences.get(holderId) ?? 0;
      for (let at = 0; at < length; at += batch) {
        const slice = hashes.subarray(at * 16, (at + batch) * 16);
        const outcome = index.apply(holderId, {
          kind: "BlocksStored",
          epoch: 1,
          sequence: ++sequence,
          medium: "device",
          hashes: slice,
        });
        if (outcome.kind !== "applied" || outcome.ignoredBlockCount > 0) throw new Error(JSON.stringify(outcome));
      }
      sequences.set(holderId, sequence);
    }
    storeMs += performance.now() - start;
  }
  const size = process.memoryUsage.rss() - before;
  const matches = new PrefixMatches(index.holderCapacity);
  const times: number[] = [];
  for (let number = 0; number < workload.matches; number++) {
    const conversation = (number * 7919) % conversations;
    const hashes = conversationHashes(workload, conversation);
    const start = performance.now();
    index.match(hashes, matches);
    times.push(performance.now() - start);
    for (let copy = 0; copy < copies; copy++) {
      const holder = index.holderNumber(holderName(workload, conversation, copy)) ?? -1;
      if (matches.blockCount(holder) !== length) throw new Error(`conversation ${conversation} was not found whole`);
    }
  }
  const stored = conversations * length * copies;
  const figures = {
    storedPerSecond: (stored / storeMs) * 1_000,
    matchP50Ms: percentile(times, 50),
    matchP99Ms: percentile(times, 99),
    bytesPerHeldBlock: size / stored,
  };
  return { figures, sequences };
}

function mix(index: number, lane: number): number {
  let word = Math.imul(index ^ Math.imul(lane + 1, 0x632be59b), 0x9e3779b9);
  word = Math.imul(word ^ (word >>> 16), 0x85ebca6b);
  word = Math.imul(word ^ (word >>> 13), 0xc2b2ae35);
  return (word ^ (word >>> 16)) >>> 0;
}
