import { percentile } from "./report.ts";

const RECENT_MAX = 16;
const FEARED_PERCENT = 90;

/** Times that something took lately, and what it has to be feared to take again. */
export class RecentTimes {
  readonly #recent: number[];

  constructor(first: number) {
    this.#recent = [first];
  }

  add(time: number): void {
    this.#recent.push(time);
    if (this.#recent.length > RECENT_MAX) this.#recent.shift();
  }

  get feared(): number {
    return percentile(this.#recent, FEARED_PERCENT);
  }
}
