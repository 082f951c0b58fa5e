import type { ReadStoreStatsResponse } from "@kvasir/proto";
import { Counter, Gauge, type Registry } from "prom-client";
import type { BlockStore } from "./block-store.ts";

/** One scrape reads the sidecar's counters once: answers are shared for this long. */
const STATS_FRESH_MS = 100;

const COUNTERS = {
  persisted_bytes: ["Bytes written to disk for blocks", (stats) => stats.bytesPersisted],
  compacted_bytes: [
    "Bytes of live records written again, to empty files that are mostly dead",
    (stats) => stats.bytesCompacted,
  ],
  loaded_bytes: ["Bytes of blocks read from disk", (stats) => stats.bytesLoaded],
  damaged_records: ["Records on disk whose checksum, key or digest was wrong: misses", (stats) => stats.damaged],
  sent_bytes: ["KV bytes sent to workers", (stats) => stats.kvBytesSent],
} as const satisfies Record<string, readonly [string, (stats: ReadStoreStatsResponse) => bigint]>;

/** What the sidecar counts. Its counters begin anew with each incarnation. */
export function registerSidecarMetrics(registry: Registry, current: () => BlockStore | undefined): void {
  const registers = [registry];
  const stats = shared(() => current()?.stats() ?? Promise.resolve(undefined));
  new Gauge({
    name: "kvasir_store_blocks",
    help: "Blocks that can be lent, by medium; one that is in both counts twice",
    labelNames: ["medium"],
    registers,
    async collect() {
      const found = await stats();
      this.set({ medium: "memory" }, Number(found?.memoryBlocks ?? 0n));
      this.set({ medium: "disk" }, Number(found?.diskBlocks ?? 0n));
    },
  });
  new Gauge({
    name: "kvasir_store_exports",
    help: "Leases under which blocks are open to pulls",
    registers,
    async collect() {
      this.set((await stats())?.exportsOpen ?? 0);
    },
  });
  new Gauge({
    name: "kvasir_store_disk_file_bytes",
    help: "Bytes of the disk tier's files, dead records among them",
    registers,
    async collect() {
      this.set(Number((await stats())?.diskFileBytes ?? 0n));
    },
  });
  for (const [name, [help, read]] of Object.entries(COUNTERS)) {
    new Counter({
      name: `kvasir_store_${name}_total`,
      help: `${help}, since the sidecar started`,
      registers,
      async collect() {
        const found = await stats();
        this.reset();
        this.inc(found === undefined ? 0 : Number(read(found)));
      },
    });
  }
}

function shared<T>(read: () => Promise<T>): () => Promise<T> {
  let readAtMs = Number.NEGATIVE_INFINITY;
  let answer: Promise<T>;
  return () => {
    if (performance.now() - readAtMs > STATS_FRESH_MS) {
      readAtMs = performance.now();
      answer = read();
    }
    return answer;
  };
}
