import type { MessageInitShape } from "@bufbuild/protobuf";
import { BLOCK_HASH_BYTES, type BlockPool, type CacheJournal } from "@kvasir/core";
import { type CacheEventSchema, CacheMedium } from "@kvasir/proto";

/** Hashes in one message: 128 KiB. Larger: fewer messages; smaller: a snapshot holds up the load between its parts less. */
const HASHES_PER_MESSAGE = 8_192;

type CacheEvent = MessageInitShape<typeof CacheEventSchema>;

/** What is cached on one medium: everything that is there, with `journal.next` where the changes after it begin. */
export interface ToldCache {
  readonly medium: CacheMedium;
  readonly journal: CacheJournal;
  snapshot(): Uint8Array;
}

export function cacheOfPool(pool: BlockPool): readonly ToldCache[] {
  return [{ medium: CacheMedium.DEVICE, journal: pool.journal, snapshot: () => pool.snapshot() }];
}

/**
 * Tells one router what an incarnation's caches hold: everything after each connection, then what changed. Lives as long as the incarnation,
 * so that its events are numbered through, whatever becomes of connections.
 */
export class CacheTeller {
  readonly #caches: readonly ToldCache[];
  /** Of the last event, and of a first snapshot: numbers begin at 1. */
  #sequence = 1n;
  /** Change of each cache's journal that is told next; undefined before the first snapshot. */
  #next: number[] | undefined;

  /** `caches`: at least one. */
  constructor(caches: readonly ToldCache[]) {
    this.#caches = caches;
  }

  /** Everything that is there. */
  snapshot(): readonly CacheEvent[] {
    const partBytes = HASHES_PER_MESSAGE * BLOCK_HASH_BYTES;
    const parts = this.#caches.flatMap((cache, index) => {
      const { medium } = cache;
      const hashes = cache.snapshot();
      // An empty snapshot has one part too.
      const count = Math.max(index === 0 ? 1 : 0, Math.ceil(hashes.length / partBytes));
      return Array.from({ length: count }, (_, part) => {
        return { medium, hashes: hashes.subarray(part * partBytes, (part + 1) * partBytes) };
      });
    });
    this.#next = this.#caches.map(({ journal }) => journal.next);
    return parts.map(({ medium, hashes }, part) =>
      this.#event(medium, { case: "snapshot", value: { part, isLast: part === parts.length - 1, hashes } }),
    );
  }

  /** What changed since it was asked last. */
  changes(): readonly CacheEvent[] {
    const events: CacheEvent[] = [];
    for (const [index, { medium, journal }] of this.#caches.entries()) {
      for (let next = this.#next?.[index]; next !== undefined && next < journal.next; ) {
        const reading = journal.read(next, HASHES_PER_MESSAGE);
        if (reading.kind === "gap") return this.snapshot();
        next = reading.next;
        if (this.#next) this.#next[index] = next;
        for (const kind of ["removed", "stored"] as const) {
          if (reading[kind].length === 0) continue;
          this.#sequence++;
          events.push(this.#event(medium, { case: kind, value: reading[kind] }));
        }
      }
    }
    return events;
  }

  #event(medium: CacheMedium, kind: NonNullable<CacheEvent["kind"]>): CacheEvent {
    return { sequence: this.#sequence, medium, kind };
  }
}
