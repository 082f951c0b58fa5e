import { Counter, Gauge, type Registry } from "prom-client";
import type { BlockStore } from "./block-store.ts";
import { registerSidecarMetrics } from "./sidecar-metrics.ts";

/** What became of the blocks that a request used. */
export type UseDecision = "known" | "pulled" | "not_admitted" | "no_room" | "elsewhere";

/** What a store tells as it goes. */
export interface StoreMeter {
  used(decision: UseDecision, blockCount: number): void;
  /** A pull from a worker ended: with so many of its blocks, `complete` or why not. */
  pulled(outcome: string, facts: { readonly blockCount: number; readonly bytes: number }): void;
  /** A worker asked for blocks, and got so many of them. */
  lent(facts: { readonly askedCount: number; readonly memoryCount: number; readonly diskCount: number }): void;
  persisted(outcome: "durable" | "failed", blockCount: number): void;
  left(medium: "memory" | "disk", blockCount: number): void;
  /** A block was thought to be there and was not: damaged, most likely. */
  missing(): void;
}

export function registerMetrics(
  registry: Registry,
  current: () => BlockStore | undefined,
  restartCount: () => number,
  followedCount: () => number,
): StoreMeter {
  const registers = [registry];
  const gauge = (
    name: string,
    help: string,
    collect: (this: Gauge) => void | Promise<void>,
    labelNames: string[] = [],
  ) => new Gauge({ name, help, labelNames, registers, collect });
  registerSidecarMetrics(registry, current);
  gauge(
    "kvasir_store_used_bytes",
    "Bytes of blocks, those on their way among them, by medium",
    function () {
      this.set({ medium: "memory" }, current()?.directory.memoryBytes ?? 0);
      this.set({ medium: "disk" }, current()?.directory.diskBytes ?? 0);
    },
    ["medium"],
  );
  gauge(
    "kvasir_store_capacity_bytes",
    "Bytes of blocks that there may be, by medium",
    function () {
      this.set({ medium: "memory" }, current()?.limits.memoryBytes ?? 0);
      this.set({ medium: "disk" }, current()?.limits.diskBytes ?? 0);
    },
    ["medium"],
  );
  gauge("kvasir_store_block_bytes", "Bytes of one block; 0 while no sidecar runs", function () {
    this.set(Number(current()?.facts.description.blockBytes ?? 0n));
  });
  gauge("kvasir_store_loans", "Loans to workers that run", function () {
    this.set(current()?.loanCount ?? 0);
  });
  gauge("kvasir_store_pinned_blocks", "Blocks that may not leave just now, since workers read them", function () {
    this.set(current()?.directory.pinnedBlockCount ?? 0);
  });
  gauge(
    "kvasir_store_kept_blocks",
    "Blocks of pinned prompts for which there is room: all (wanted), and those that are here (present)",
    function () {
      const { wanted = 0, present = 0 } = current()?.directory.keptBlockCounts ?? {};
      this.set({ state: "wanted" }, wanted);
      this.set({ state: "present" }, present);
    },
    ["state"],
  );
  gauge(
    "kvasir_store_pull_blocks",
    "Blocks to be pulled from workers, by whether the pull has begun",
    function () {
      this.set({ state: "waiting" }, current()?.waitingBlockCount ?? 0);
      this.set({ state: "running" }, current()?.pullingBlockCount ?? 0);
    },
    ["state"],
  );
  gauge("kvasir_store_followed_workers", "Workers that tell what requests use", function () {
    this.set(followedCount());
  });
  gauge("kvasir_store_sidecar_restarts", "Times that the sidecar was started again", function () {
    this.set(restartCount());
  });
  const used = new Counter({
    name: "kvasir_store_used_blocks_total",
    help: "Blocks that requests used, as workers told, by what became of them: known already, pulled, not worth storing, without room, or another store's",
    labelNames: ["decision"],
    registers,
  });
  for (const decision of ["known", "pulled", "not_admitted", "no_room", "elsewhere"]) used.inc({ decision }, 0);
  const pulls = new Counter({
    name: "kvasir_store_pulls_total",
    help: "Pulls from workers that ended: complete, partial, gone (the worker has the blocks no more), or why one failed",
    labelNames: ["outcome"],
    registers,
  });
  for (const outcome of ["complete", "partial", "gone", "unavailable", "overloaded"]) pulls.inc({ outcome }, 0);
  const pulledBlocks = new Counter({
    name: "kvasir_store_pulled_blocks_total",
    help: "Blocks that came with kvasir_store_pulls_total",
    registers,
  });
  const pulledBytes = new Counter({
    name: "kvasir_store_pulled_bytes_total",
    help: "Their bytes",
    registers,
  });
  const lent = new Counter({
    name: "kvasir_store_lent_blocks_total",
    help: "Blocks that workers asked for, by where they were; missing: they were not there, or could not be read",
    labelNames: ["medium"],
    registers,
  });
  for (const medium of ["memory", "disk", "missing"]) lent.inc({ medium }, 0);
  const persisted = new Counter({
    name: "kvasir_store_persisted_blocks_total",
    help: "Blocks written to disk, by outcome",
    labelNames: ["outcome"],
    registers,
  });
  for (const outcome of ["durable", "failed"]) persisted.inc({ outcome }, 0);
  const left = new Counter({
    name: "kvasir_store_removed_blocks_total",
    help: "Blocks that left a medium, for want of room or by their age",
    labelNames: ["medium"],
    registers,
  });
  for (const medium of ["memory", "disk"]) left.inc({ medium }, 0);
  const missing = new Counter({
    name: "kvasir_store_missing_blocks_total",
    help: "Blocks that were thought to be there and were not, or were damaged",
    registers,
  });
  return {
    used: (decision, blockCount) => used.inc({ decision }, blockCount),
    pulled(outcome, { blockCount, bytes }) {
      pulls.inc({ outcome });
      pulledBlocks.inc(blockCount);
      pulledBytes.inc(bytes);
    },
    lent({ askedCount, memoryCount, diskCount }) {
      lent.inc({ medium: "memory" }, memoryCount);
      lent.inc({ medium: "disk" }, diskCount);
      lent.inc({ medium: "missing" }, askedCount - memoryCount - diskCount);
    },
    persisted: (outcome, blockCount) => persisted.inc({ outcome }, blockCount),
    left: (medium, blockCount) => left.inc({ medium }, blockCount),
    missing: () => missing.inc(),
  };
}
