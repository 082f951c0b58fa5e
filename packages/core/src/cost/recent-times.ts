/** Times that are remembered. Larger: steadier; smaller: a change is seen sooner. */
const RECENT_MAX = 16;
/** Share of them that took longer than what is feared. */
const LONGER_SHARE = 0.1;

/** Times that something took lately, and what it has to be feared to take again. */
export class RecentTimes {
  readonly #recent: number[];

  constructor(first?: number) {
    this.#recent = first === undefined ? [] : [first];
  }

  add(time: number): void {
    this.#recent.push(time);
    if (this.#recent.length > RECENT_MAX) this.#recent.shift();
  }

  /** Undefined before the first. */
  get feared(): number | undefined {
    const sorted = [...this.#recent].sort((a, b) => a - b);
    return sorted[Math.max(0, Math.ceil((1 - LONGER_SHARE) * sorted.length) - 1)];
  }
}
