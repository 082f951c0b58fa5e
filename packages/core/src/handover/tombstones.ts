import type { Instant } from "../time.ts";

/** Ids of transfers that are over, or were given up before they were heard of: a late or repeated message must not begin them anew. */
export class Tombstones {
  /** In the order of their ends, as all live equally long. */
  readonly #until = new Map<string, Instant>();

  /** Remembers an id until then; repeating it keeps it longer. */
  add(id: string, until: Instant): void {
    this.#until.delete(id);
    this.#until.set(id, until);
  }

  has(id: string, now: Instant): boolean {
    this.#forget(now);
    return this.#until.has(id);
  }

  get size(): number {
    return this.#until.size;
  }

  #forget(now: Instant): void {
    for (const [id, until] of this.#until) {
      if (until > now) return;
      this.#until.delete(id);
    }
  }
}
