import { assert } from "../assert.ts";
import type { HolderEvent } from "./holder-event.ts";

/** One holder: which incarnation, how far its events were taken, and under which numbers its blocks are filed. */
export interface HolderStream {
  readonly holderId: string;
  epoch: number;
  /** Of the last event taken. */
  sequence: number;
  /** Number of what look-ups see. */
  holder: number;
  needsSnapshot: boolean;
  /** A snapshot on its way in: filed under a number of its own that no look-up sees. */
  snapshot: { readonly holder: number; readonly sequence: number; nextPart: number } | undefined;
}

export type StreamVerdict = "take" | "repeated" | "gap" | "stale_epoch";

/** Whether an event is the next one of its holder's stream. */
export function judge(stream: HolderStream, event: HolderEvent): StreamVerdict {
  if (event.epoch < stream.epoch) return "stale_epoch";
  assert(event.epoch === stream.epoch, "a new epoch begins a new stream");
  if (event.kind === "SnapshotPart") {
    if (event.sequence < stream.sequence) return "repeated";
    // A first part always begins: a snapshot that broke off is sent anew.
    if (event.part === 0) return "take";
    const { snapshot } = stream;
    if (snapshot === undefined || event.sequence !== snapshot.sequence) return "gap";
    if (event.part < snapshot.nextPart) return "repeated";
    return event.part === snapshot.nextPart ? "take" : "gap";
  }
  if (event.sequence <= stream.sequence) return "repeated";
  return event.sequence === stream.sequence + 1 ? "take" : "gap";
}

/** Gives out the numbers under which blocks are filed; one that is given back is used again once its blocks are swept. */
export class HolderNumbers {
  readonly #capacity: number;
  readonly #free: number[] = [];
  /** Numbers whose blocks have to go, first come first. */
  readonly #retired: number[] = [];
  #fresh = 0;

  constructor(capacity: number) {
    this.#capacity = capacity;
  }

  take(): number | undefined {
    const free = this.#free.pop();
    if (free !== undefined) return free;
    return this.#fresh < this.#capacity ? this.#fresh++ : undefined;
  }

  retire(holder: number): void {
    this.#retired.push(holder);
  }

  /** The number to be swept next. */
  firstRetired(): number | undefined {
    return this.#retired[0];
  }

  /** The first retired number has no block any more. */
  release(): void {
    const holder = this.#retired.shift();
    assert(holder !== undefined, "no number is retired");
    this.#free.push(holder);
  }

  get retiredCount(): number {
    return this.#retired.length;
  }
}
