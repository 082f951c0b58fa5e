import { type Instant, nanosFromMs } from "@kvasir/core";

export interface LinkOptions {
  readonly bytesPerSecond: number;
  readonly latencyMs: number;
}

/** The way out of one worker: what is sent goes one after another, each at the link's full speed. */
export class Link {
  readonly #options: LinkOptions;
  #freeAt = 0;

  constructor(options: LinkOptions) {
    this.#options = options;
  }

  /** When the last byte of something sent now has arrived. */
  arrival(bytes: number, now: Instant): Instant {
    const start = Math.max(this.#freeAt, now);
    this.#freeAt = start + Math.round((bytes / this.#options.bytesPerSecond) * 1e9);
    return (this.#freeAt + nanosFromMs(this.#options.latencyMs)) as Instant;
  }
}
