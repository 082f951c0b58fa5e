import type { MessageInitShape } from "@bufbuild/protobuf";
import { BLOCK_HASH_BYTES, type BlockPool } from "@kvasir/core";
import { type CacheEventSchema, CacheMedium } from "@kvasir/proto";

/** Hashes in one message: 128 KiB. Larger: fewer messages; smaller: a snapshot holds up the load between its parts less. */
const HASHES_PER_MESSAGE = 8_192;

type CacheEvent = MessageInitShape<typeof CacheEventSchema>;

/**
 * Tells one router what an incarnation's cache holds: everything after each connection, then what changed. Lives as long as the incarnation,
 * so that its events are numbered through, whatever becomes of connections.
 */
export class CacheTeller {
  readonly #pool: BlockPool;
  /** Of the last event, and of a first snapshot: numbers begin at 1. */
  #sequence = 1n;
  /** Change of the pool's journal that is told next; undefined before the first snapshot. */
  #next: number | undefined;

  constructor(pool: BlockPool) {
    this.#pool = pool;
  }

  /** Everything that is there. */
  snapshot(): readonly CacheEvent[] {
    const hashes = this.#pool.snapshot();
    this.#next = this.#pool.journal.next;
    const partBytes = HASHES_PER_MESSAGE * BLOCK_HASH_BYTES;
    const partCount = Math.max(1, Math.ceil(hashes.length / partBytes));
    return Array.from({ length: partCount }, (_, part) => {
      const value = {
        part,
        isLast: part === partCount - 1,
        hashes: hashes.subarray(part * partBytes, (part + 1) * partBytes),
      };
      return this.#event({ case: "snapshot", value });
    });
  }

  /** What changed since it was asked last. */
  changes(): readonly CacheEvent[] {
    if (this.#next === undefined) return [];
    const events: CacheEvent[] = [];
    while (this.#next < this.#pool.journal.next) {
      const reading = this.#pool.journal.read(this.#next, HASHES_PER_MESSAGE);
      if (reading.kind === "gap") return this.snapshot();
      this.#next = reading.next;
      for (const kind of ["removed", "stored"] as const) {
        if (reading[kind].length === 0) continue;
        this.#sequence++;
        events.push(this.#event({ case: kind, value: reading[kind] }));
      }
    }
    return events;
  }

  #event(kind: NonNullable<CacheEvent["kind"]>): CacheEvent {
    return { sequence: this.#sequence, medium: CacheMedium.DEVICE, kind };
  }
}
