import { assert } from "../../assert.ts";
import type { CodecLevelFacts, KvAccuracy, LevelSource, TransferBook } from "../../codec-level/index.ts";
import { type Instant, nanosFromMs } from "../../time.ts";
import { type LoadAction, PrefixLoad } from "../prefix-load.ts";
import type { TokenSpan } from "../token-span.ts";
import { SimulatedLink, type SimulatedPull } from "./simulated-link.ts";

/** A source, a link and a device, as they are, whatever is believed of them. */
export interface LoadWorld {
  /** Bytes that the link carries in the n-th millisecond. */
  readonly rate: (ms: number) => number;
  readonly levels: readonly CodecLevelFacts[];
  readonly computeMsPerToken: number;
  /** Until the holder says what it lends; Infinity: never. */
  readonly answerMs?: number;
  /** Until a pull that is stopped writes no more. */
  readonly fenceMs?: number;
  /** Whether others keep the device busy in that millisecond. Default: nobody does. */
  readonly isBusy?: (ms: number) => boolean;
}

export interface SimulatedLoadFacts {
  readonly tokenCount: number;
  readonly blockSize: number;
  readonly bytesPerToken: number;
  readonly budget: KvAccuracy;
  readonly deadlineMs: number | undefined;
  readonly book: TransferBook;
  /** What was measured of the device before. */
  readonly computeMsPerToken: () => number;
  /** A chunk was computed. */
  readonly computed?: (msPerToken: number) => void;
  readonly source: LevelSource;
}

export interface SimulatedLoad {
  /** Until all is there. */
  readonly ms: number;
  readonly fetchedTokenCount: number;
  /** Of them, at each level. */
  readonly levels: ReadonlyMap<number, number>;
  readonly takenBackCount: number;
  readonly denserCount: number;
  readonly isLate: boolean;
}

/** Between two looks at a load of which nothing is heard. */
const LOOK_MS = 10;
/** What the device computes in one step once nothing is fetched any more. */
const STEP_TOKENS = 512;

/**
 * Runs a `PrefixLoad` in virtual time, in steps of a millisecond. Pulls share the link equally and are sent as far as they are encoded. Fails
 * where the load asks for tokens that are there or on their way, or computes behind tokens that are not there.
 */
export function simulateLoad(world: LoadWorld, facts: SimulatedLoadFacts, untilMs = 1e6): SimulatedLoad {
  return new Simulation(world, facts).run(untilMs);
}

interface Fence {
  readonly span: TokenSpan;
  readonly atMs: number;
  readonly perform: (ms: number) => void;
}

class Simulation {
  readonly #world: LoadWorld;
  readonly #facts: SimulatedLoadFacts;
  readonly #load: PrefixLoad;
  readonly #link: SimulatedLink;
  /** By block. */
  readonly #ways: (undefined | "computed" | "fetched" | "open")[];
  readonly #levels = new Map<number, number>();
  #computing: { readonly begin: number; readonly end: number; leftMs: number } | undefined;
  /** What waits until a pull that was stopped writes no more, by its first token. */
  readonly #fences = new Map<number, Fence>();
  #askedEnd = 0;
  #hasEnded = false;
  #takenBackCount = 0;
  #denserCount = 0;

  constructor(world: LoadWorld, facts: SimulatedLoadFacts) {
    this.#world = world;
    this.#facts = facts;
    const { tokenCount, blockSize, bytesPerToken, budget, deadlineMs, book, computeMsPerToken } = facts;
    const span = { begin: 0, end: tokenCount };
    this.#load = new PrefixLoad({ span, blockSize, bytesPerToken, budget, deadlineMs, book, computeMsPerToken });
    this.#link = new SimulatedLink(world.levels, bytesPerToken);
    this.#ways = Array.from({ length: tokenCount / blockSize }, () => undefined);
  }

  run(untilMs: number): SimulatedLoad {
    const { answerMs = 0, rate } = this.#world;
    let isLent = false;
    for (let ms = 0; ms < untilMs; ms++) {
      let isNews = ms % LOOK_MS === 0;
      if (!isLent && !this.#hasEnded && ms >= answerMs) {
        isLent = isNews = true;
        this.#load.lent(this.#facts.source, this.#facts.tokenCount);
      }
      for (const [begin, { span, atMs, perform }] of this.#fences) {
        if (ms < atMs) continue;
        isNews = true;
        this.#fences.delete(begin);
        this.#set(span, "open", undefined);
        perform(ms);
      }
      for (const pull of this.#link.tick(ms, rate(ms))) {
        isNews = true;
        this.#arrived(pull, ms);
      }
      for (const { begin, sentBytes } of this.#link.pulls.values()) this.#load.received(begin, sentBytes, ms);
      if (this.#step(ms)) isNews = true;
      if (isNews) this.#act(ms);
      if (this.#ways.every((way) => way === "computed" || way === "fetched")) return this.#outcome(ms);
    }
    throw new Error(`the load is not done after ${untilMs} ms`);
  }

  #outcome(ms: number): SimulatedLoad {
    const fetchedTokenCount = this.#ways.filter((way) => way === "fetched").length * this.#facts.blockSize;
    const [takenBackCount, denserCount, { isLate }] = [this.#takenBackCount, this.#denserCount, this.#load];
    return { ms, fetchedTokenCount, levels: this.#levels, takenBackCount, denserCount, isLate };
  }

  #act(ms: number): void {
    for (let action = this.#load.next(ms); action !== undefined; action = this.#load.next(ms))
      this.#perform(action, ms);
  }

  #perform(action: LoadAction, ms: number): void {
    switch (action.kind) {
      case "pull":
        this.#pull(action, ms);
        break;
      case "pullDenser":
        this.#denserCount++;
        this.#stop(action, ms, (atMs) => this.#pull(action, atMs));
        break;
      case "takeBack":
        this.#takenBackCount++;
        this.#stop(action, ms, () => {
          this.#load.released(action.begin);
          this.#askedEnd = action.end;
        });
        break;
      case "compute":
        this.#askedEnd = action.end;
        break;
      case "end":
        assert(this.#link.pulls.size === 0 && this.#fences.size === 0, "the load ends with pulls under way");
        this.#hasEnded = true;
        this.#askedEnd = this.#facts.tokenCount;
        break;
    }
  }

  #pull(action: Extract<LoadAction, { kind: "pull" | "pullDenser" }>, ms: number): void {
    const { book, source } = this.#facts;
    this.#set(action, undefined, "open");
    book.begin(source.peer);
    this.#link.pull(action, action.level.level, ms);
  }

  /** What is decided of the same tokens meanwhile takes its place. */
  #stop({ begin }: { readonly begin: number }, ms: number, perform: (ms: number) => void): void {
    const { book, source } = this.#facts;
    const pull = this.#link.pulls.get(begin);
    if (pull === undefined) {
      const fence = this.#fences.get(begin);
      assert(fence !== undefined, `no pull begins at ${begin}`);
      this.#fences.set(begin, { ...fence, perform });
      return;
    }
    this.#link.pulls.delete(begin);
    if (pull.sentBytes > 0) {
      const traffic = { wireBytes: pull.sentBytes, rawBytes: pull.sentBytes, encodeMs: 0, decodeMs: 0 };
      book.observe(
        source.peer,
        undefined,
        new Map([[0, traffic]]),
        Math.max(1, ms - (pull.firstByteMs ?? ms)),
        nanosFromMs(ms) as number as Instant,
      );
    }
    book.end(source.peer);
    this.#fences.set(begin, { span: pull, atMs: ms + (this.#world.fenceMs ?? 0), perform });
  }

  #arrived(pull: SimulatedPull, ms: number): void {
    const { book, source } = this.#facts;
    const { level, wireBytes, rawBytes, encodeMs, decodeMs, firstByteMs = ms } = pull;
    const traffic = new Map([[level, { wireBytes, rawBytes, encodeMs, decodeMs }]]);
    book.observe(
      source.peer,
      book.levelsOf(source).profileId,
      traffic,
      Math.max(1, ms - firstByteMs),
      nanosFromMs(ms) as number as Instant,
    );
    book.end(source.peer);
    this.#set(pull, "open", "fetched");
    this.#levels.set(level, (this.#levels.get(level) ?? 0) + pull.end - pull.begin);
    this.#load.arrived(pull.begin);
  }

  /** The device; answers whether it has ended what it was let do. */
  #step(ms: number): boolean {
    const { computed, blockSize, tokenCount } = this.#facts;
    const { computeMsPerToken, isBusy } = this.#world;
    if (this.#computing !== undefined) {
      if (!(isBusy?.(ms) ?? false)) this.#computing.leftMs--;
      if (this.#computing.leftMs > 0) return false;
      computed?.(computeMsPerToken);
      this.#computing = undefined;
    }
    const front = this.#ways.findIndex((way) => way !== "computed" && way !== "fetched");
    if (front < 0) return false;
    const begin = front * blockSize;
    if (begin < this.#askedEnd) {
      const limit = Math.min(this.#askedEnd, begin + STEP_TOKENS, tokenCount);
      let end = begin;
      while (end < limit && this.#ways[end / blockSize] === undefined) end += blockSize;
      assert(end > begin, `token ${begin} is to be computed and on its way`);
      this.#set({ begin, end }, undefined, "computed");
      this.#computing = { begin, end, leftMs: (end - begin) * computeMsPerToken };
      return false;
    }
    if (this.#hasEnded || this.#askedEnd === 0 || this.#toldEnd === this.#askedEnd) return false;
    this.#toldEnd = this.#askedEnd;
    this.#load.computed();
    return true;
  }

  #toldEnd = 0;

  #set(
    { begin, end }: { readonly begin: number; readonly end: number },
    from: unknown,
    to: "computed" | "fetched" | "open" | undefined,
  ): void {
    const { blockSize } = this.#facts;
    for (let block = begin / blockSize; block < end / blockSize; block++) {
      if (this.#ways[block] !== from)
        throw new Error(`block ${block} was ${this.#ways[block]}, not ${from}, before it is ${to}`);
      this.#ways[block] = to;
    }
  }
}
