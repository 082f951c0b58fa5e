import {
  assert,
  type CodecLevelFacts,
  KV_ACCURACIES,
  type KvAccuracy,
  overtaken,
  type TransferBook,
  type UnderWayFacts,
} from "@kvasir/core";
import type { RecentTimes } from "./recent-times.ts";

/** Pulls that are kept on the link, so that it does not wait while one is encoded or decoded. */
const PULLS_MAX = 2;
/** Chunks of one pull. Larger: fewer calls; smaller: less is begun that turns out to be slow. */
const PULL_CHUNKS_MAX = 4;
/** What came within this time tells the link's speed now. Larger: steadier; smaller: a change is seen sooner. */
const WINDOW_MS = 120;
/** What another pull of a chunk at the densest level has to save of the bytes still to come. Larger: less is sent twice. */
const DENSER_SAVING = 0.3;
/** From the first request on an idle link until its silence says something. */
const GRACE_MS = 50;

export interface LoadFacts {
  readonly chunkCount: number;
  readonly chunkTokens: number;
  readonly bytesPerToken: number;
  readonly book: TransferBook;
  readonly peer: string;
  readonly profileId: string;
  readonly budget: KvAccuracy;
  /** From the load's beginning. */
  readonly deadlineMs: number;
  /** Of the profile. */
  readonly levels: readonly (CodecLevelFacts | undefined)[];
}

/** What is to be done now. */
export type LoadAction =
  | { readonly kind: "pull"; readonly chunk: number; readonly count: number; readonly level: number }
  | { readonly kind: "compute"; readonly chunk: number }
  /** Stop the pull that begins with this chunk, wait until nothing writes, say that it is released, and compute the chunk. */
  | { readonly kind: "takeBack"; readonly chunk: number }
  /** Stop it, wait, and pull the same at this level instead. */
  | { readonly kind: "pullDenser"; readonly chunk: number; readonly count: number; readonly level: number };

interface Pull {
  readonly chunk: number;
  readonly count: number;
  readonly level: number;
  readonly wireBytes: number;
  receivedBytes: number;
}

/**
 * Loads a context by chunks of tokens: the device computes from the front while the link brings the end, each chunk at the level that the
 * `TransferBook` chooses then. What is late on the link when the device comes to it is computed. Pure: told what happens and when, it says what to do.
 */
export class AdaptiveLoad {
  readonly #facts: LoadFacts;
  readonly #states: ("open" | "busy" | "here")[];
  /** By their first chunks. */
  readonly #pulls = new Map<number, Pull>();
  readonly #takenBack = new Map<number, Pull>();
  #computing: { readonly chunk: number; readonly sinceMs: number } | undefined;
  readonly #computeMs: RecentTimes;
  /** What came when, of the last moments. */
  #receipts: { readonly atMs: number; readonly bytes: number }[] = [];
  #linkBusySinceMs = 0;

  /** `computeMs`: what a token takes; goes on being measured. */
  constructor(facts: LoadFacts, computeMs: RecentTimes) {
    this.#facts = facts;
    this.#states = Array.from({ length: facts.chunkCount }, () => "open");
    this.#computeMs = computeMs;
  }

  get isDone(): boolean {
    return this.#states.every((state) => state === "here");
  }

  /** Undefined: nothing for now. To be asked again whenever something was told or done, and from time to time. */
  next(nowMs: number): LoadAction | undefined {
    const first = this.#states.indexOf("open");
    const front = this.#states.findIndex((state) => state !== "here");
    if (front < 0) return undefined;
    const isIdle = this.#computing === undefined;
    if (first < 0) {
      const overtakenPull = isIdle && this.#isOvertaken(nowMs) ? this.#pulls.get(front) : undefined;
      if (overtakenPull === undefined) return this.#isLate(nowMs) ? this.#denser(nowMs) : undefined;
      this.#pulls.delete(front);
      this.#takenBack.set(front, overtakenPull);
      this.#computing = { chunk: front, sinceMs: nowMs };
      return { kind: "takeBack", chunk: front };
    }
    const last = this.#states.lastIndexOf("open");
    const mayPull = this.#pulls.size < PULLS_MAX;
    const mayCompute = isIdle && first === front;
    const { chunkTokens, bytesPerToken, book, peer, profileId, budget, deadlineMs } = this.#facts;
    const computingMs = this.#computing === undefined ? 0 : nowMs - this.#computing.sinceMs;
    const busyMs = isIdle ? 0 : Math.max(0, chunkTokens * this.#computeMs.feared - computingMs);
    const choice = book.choose({
      ...{ peer, peerProfileIds: [profileId], isWhole: true, bytesPerToken, budget, chunkTokens },
      ...{ tokenBegin: first * chunkTokens, tokenEnd: (last + 1) * chunkTokens },
      deadlineMs: Math.max(0, deadlineMs - nowMs),
      compute: { msPerToken: this.#computeMs.feared, busyMs },
      underWay: this.#underWay(nowMs),
    });
    if (mayCompute && choice.computedTokenCount > 0) {
      this.#states[first] = "busy";
      this.#computing = { chunk: first, sinceMs: nowMs };
      return { kind: "compute", chunk: first };
    }
    const denser = choice.meetsDeadline ? undefined : this.#denser(nowMs);
    if (denser !== undefined) return denser;
    const span = choice.spans.at(-1);
    if (!mayPull || span === undefined) return undefined;
    // Large pulls first, so that there are few, and small ones when device and link come near each other.
    const wanted = Math.floor((last + 1 - first - choice.computedTokenCount / chunkTokens) / (2 * PULLS_MAX));
    const sameLevel = last + 1 - Math.max(first, (choice.spans.at(-2)?.tokenEnd ?? 0) / chunkTokens);
    const count = Math.max(1, Math.min(PULL_CHUNKS_MAX, wanted, sameLevel));
    return this.#begin("pull", last + 1 - count, count, span.level, nowMs);
  }

  #begin(kind: "pull" | "pullDenser", chunk: number, count: number, level: number, nowMs: number): LoadAction {
    if (this.#pulls.size === 0) this.#linkBusySinceMs = nowMs;
    this.#states.fill("busy", chunk, chunk + count);
    this.#pulls.set(chunk, { chunk, count, level, wireBytes: count * this.#wireBytes(level), receivedBytes: 0 });
    return { kind, chunk, count, level };
  }

  #wireBytes(level: number): number {
    const { chunkTokens, bytesPerToken, levels } = this.#facts;
    return (chunkTokens * bytesPerToken) / (levels[level]?.ratio ?? 1);
  }

  /** Whether what is under way is late as the link is now. */
  #isLate(nowMs: number): boolean {
    const { queuedBytes, bytesPerMs } = this.#underWay(nowMs);
    return bytesPerMs !== undefined && queuedBytes / bytesPerMs > this.#facts.deadlineMs - nowMs;
  }

  /** The pull that would save most if it began anew at the densest level that the request allows. */
  #denser(nowMs: number): LoadAction | undefined {
    if (this.#speedNow(nowMs) === undefined) return undefined;
    const { levels, budget } = this.#facts;
    const rank = (accuracy: KvAccuracy) => KV_ACCURACIES.indexOf(accuracy);
    const allowed = levels.flatMap((level, index) => (level && rank(level.accuracy) <= rank(budget) ? [index] : []));
    const densest = allowed.reduce((best, index) => (this.#wireBytes(index) < this.#wireBytes(best) ? index : best), 0);
    const worst = [...this.#pulls.values()].reduce<Pull | undefined>(
      (most, pull) => (most && remaining(most) >= remaining(pull) ? most : pull),
      undefined,
    );
    if (worst === undefined) return undefined;
    const { chunk, count } = worst;
    if (count * this.#wireBytes(densest) > (1 - DENSER_SAVING) * remaining(worst)) return undefined;
    return this.#begin("pullDenser", chunk, count, densest, nowMs);
  }

  /** So many bytes of the pull that begins with a chunk have come. */
  received(chunk: number, bytes: number, nowMs: number): void {
    const pull = this.#pulls.get(chunk);
    if (pull === undefined) return;
    this.#receipts.push({ atMs: nowMs, bytes: bytes - pull.receivedBytes });
    pull.receivedBytes = bytes;
  }

  /** All of the pull that begins with a chunk is in place. */
  arrived(chunk: number): void {
    const pull = this.#pulls.get(chunk);
    if (pull === undefined) return;
    this.#pulls.delete(chunk);
    this.#states.fill("here", chunk, chunk + pull.count);
  }

  /** Nothing of the pull that was taken back writes any more. */
  released(chunk: number): void {
    const pull = this.#takenBack.get(chunk);
    if (pull === undefined) return;
    this.#takenBack.delete(chunk);
    // The first is being computed.
    this.#states.fill("open", chunk + 1, chunk + pull.count);
  }

  computed(chunk: number, nowMs: number): void {
    assert(this.#computing?.chunk === chunk, "another chunk was computed");
    this.#computeMs.add((nowMs - this.#computing.sinceMs) / this.#facts.chunkTokens);
    this.#states[chunk] = "here";
    this.#computing = undefined;
  }

  #isOvertaken(nowMs: number): boolean {
    const { book, peer, chunkTokens, deadlineMs } = this.#facts;
    const { queuedBytes, bytesPerMs } = this.#underWay(nowMs);
    if (queuedBytes === 0) return false;
    const computeMs = chunkTokens * this.#computeMs.feared;
    const chunks = [...this.#pulls.values()]
      .sort((a, b) => a.chunk - b.chunk)
      .map((pull) => ({ remainingBytes: remaining(pull), computeMs: pull.count * computeMs }));
    const usualBytesPerMs = book.linkOf(peer)?.usual ?? Number.POSITIVE_INFINITY;
    return overtaken(chunks, { bytesPerMs: bytesPerMs ?? usualBytesPerMs, usualBytesPerMs }, deadlineMs - nowMs) > 0;
  }

  #underWay(nowMs: number): UnderWayFacts {
    const pulls = [...this.#pulls.values()];
    const queuedBytes = pulls.reduce((sum, pull) => sum + remaining(pull), 0);
    return { streamCount: pulls.length, queuedBytes, bytesPerMs: this.#speedNow(nowMs) };
  }

  /** Undefined until the link has been busy for a while. */
  #speedNow(nowMs: number): number | undefined {
    const sinceMs = Math.max(this.#linkBusySinceMs, nowMs - WINDOW_MS);
    const ms = nowMs - sinceMs;
    if (this.#pulls.size === 0 || ms < GRACE_MS) return undefined;
    this.#receipts = this.#receipts.filter(({ atMs }) => atMs > sinceMs);
    const bytes = this.#receipts.reduce((sum, receipt) => sum + receipt.bytes, 0);
    // Something is always half received.
    return Math.max(bytes, this.#facts.chunkTokens) / ms;
  }
}

/** A guess of the last bytes stays, since a chunk is in place only when it is decoded. */
function remaining({ wireBytes, receivedBytes }: Pull): number {
  return Math.max(wireBytes - receivedBytes, wireBytes / 100);
}
