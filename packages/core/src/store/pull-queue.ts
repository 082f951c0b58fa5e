import { assert } from "../assert.ts";
import { addNanos, type Instant, type Nanos, nanosBetween } from "../time.ts";

/** Blocks in a row of one text, to be pulled from one source. */
export interface BlockRun {
  readonly sourceId: string;
  /** 32 hex digits: whose. */
  readonly tenant: string;
  /** Blocks before them in their text. */
  readonly firstBlock: number;
  /** 16 bytes each. */
  readonly keys: readonly Uint8Array[];
}

export interface PullQueueOptions {
  readonly blockBytes: number;
  /** What pulls may take of the network, over time. Larger: blocks are stored sooner; smaller: hand-overs are disturbed less. */
  readonly bytesPerSecond: number;
  /** Blocks of one pull. Larger: fewer calls; smaller: what is lost with a broken one is less. */
  readonly runBlockMax: number;
  /** Blocks on their way at once: what the sidecar has room for. */
  readonly blockMax: number;
  /** Pulls from one source at once. */
  readonly perSourceMax: number;
  /** Blocks that may wait; those beyond are not stored. Larger: rides out bursts; smaller: what is stored is fresher. */
  readonly waitingBlockMax: number;
}

/**
 * Which pull begins when: in their order, within a rate (a token bucket of one second), a bound on blocks under way, and one for each source. A
 * source that has as much under way as it may does not hold up the others.
 */
export class PullQueue {
  readonly #options: PullQueueOptions;
  #waiting: BlockRun[] = [];
  readonly #underWay = new Map<string, number>();
  #waitingBlockCount = 0;
  #blockCount = 0;
  /** Bytes that may be asked for now. */
  #allowance: number;
  #countedAt: Instant | undefined;

  constructor(options: PullQueueOptions) {
    this.#options = options;
    this.#allowance = options.bytesPerSecond;
  }

  get waitingBlockCount(): number {
    return this.#waitingBlockCount;
  }

  get blockCount(): number {
    return this.#blockCount;
  }

  /** Files a run, cut into pulls. Answers with the blocks for which there is no room: they are not pulled. */
  add(run: BlockRun): readonly Uint8Array[] {
    const { runBlockMax, waitingBlockMax } = this.#options;
    const room = Math.max(0, waitingBlockMax - this.#waitingBlockCount);
    const keys = run.keys.slice(0, room);
    for (let begin = 0; begin < keys.length; begin += runBlockMax) {
      const part = { ...run, firstBlock: run.firstBlock + begin, keys: keys.slice(begin, begin + runBlockMax) };
      this.#waiting.push(part);
    }
    this.#waitingBlockCount += keys.length;
    return run.keys.slice(room);
  }

  /** The next pull, which counts as under way until `ended`; undefined: none may begin now. */
  next(now: Instant): BlockRun | undefined {
    this.#refill(now);
    const index = this.#waiting.findIndex((run) => this.#mayBegin(run));
    const run = this.#waiting[index];
    if (run === undefined) return undefined;
    this.#waiting.splice(index, 1);
    this.#waitingBlockCount -= run.keys.length;
    this.#blockCount += run.keys.length;
    this.#allowance -= run.keys.length * this.#options.blockBytes;
    this.#underWay.set(run.sourceId, (this.#underWay.get(run.sourceId) ?? 0) + 1);
    return run;
  }

  /** When the rate lets the next one begin, if nothing ends before. */
  nextAt(now: Instant): Instant | undefined {
    if (this.#waiting.length === 0 || this.#allowance > 0) return undefined;
    return addNanos(now, Math.ceil((-this.#allowance / this.#options.bytesPerSecond) * 1e9 + 1) as Nanos);
  }

  ended(run: BlockRun): void {
    this.#blockCount -= run.keys.length;
    const left = (this.#underWay.get(run.sourceId) ?? 0) - 1;
    assert(left >= 0 && this.#blockCount >= 0, `a pull from ${run.sourceId} ends that did not begin`);
    if (left === 0) this.#underWay.delete(run.sourceId);
    else this.#underWay.set(run.sourceId, left);
  }

  /** Takes out what waits for a source that is gone. */
  sourceGone(sourceId: string): readonly BlockRun[] {
    const gone = this.#waiting.filter((run) => run.sourceId === sourceId);
    this.#waiting = this.#waiting.filter((run) => run.sourceId !== sourceId);
    for (const run of gone) this.#waitingBlockCount -= run.keys.length;
    return gone;
  }

  #mayBegin({ sourceId, keys }: BlockRun): boolean {
    const { blockMax, perSourceMax } = this.#options;
    if (this.#allowance <= 0 || (this.#underWay.get(sourceId) ?? 0) >= perSourceMax) return false;
    return this.#blockCount === 0 || this.#blockCount + keys.length <= blockMax;
  }

  /** What is asked for at once may exceed the allowance, which then is below zero for a while. */
  #refill(now: Instant): void {
    const { bytesPerSecond } = this.#options;
    const seconds = this.#countedAt === undefined ? 0 : nanosBetween(this.#countedAt, now) / 1e9;
    this.#allowance = Math.min(bytesPerSecond, this.#allowance + seconds * bytesPerSecond);
    this.#countedAt = now;
  }
}

/** Neighbouring blocks of one text in runs: `positions[i]` is the number of block i in it. */
export function runsOf<T>(blocks: readonly T[], positionOf: (block: T) => number): readonly (readonly T[])[] {
  const runs: T[][] = [];
  for (const block of blocks) {
    const last = runs.at(-1);
    const before = last?.at(-1);
    if (last !== undefined && before !== undefined && positionOf(before) + 1 === positionOf(block)) last.push(block);
    else runs.push([block]);
  }
  return runs;
}
