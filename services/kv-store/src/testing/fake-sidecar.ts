import { randomBytes } from "node:crypto";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { BLOCK_HASH_BYTES, KvasirError } from "@kvasir/core";
import { type DiskBlock, StoreSidecarService } from "@kvasir/proto";
import { createServer } from "@kvasir/rpc";

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");

/** Keys, 16 bytes each, as hexadecimal. */
export function keysOf(bytes: Uint8Array): string[] {
  return Array.from({ length: bytes.length / BLOCK_HASH_BYTES }, (_, index) =>
    hex(bytes.subarray(index * BLOCK_HASH_BYTES, (index + 1) * BLOCK_HASH_BYTES)),
  );
}

/** The sidecar's side of a store without bytes: which blocks are in memory, on disk and behind a lease. */
export class FakeSidecar {
  readonly socketPath = join(tmpdir(), `kvasir-fake-store-${hex(randomBytes(8))}.sock`);
  readonly memory = new Set<string>();
  readonly disk = new Set<string>();
  /** Open leases with their blocks. */
  readonly leases = new Map<string, readonly string[]>();
  readonly ingests: { readonly firstBlock: number; readonly count: number }[] = [];
  /** Blocks that an ingest gets; the others do not come. */
  ingestMax = Number.POSITIVE_INFINITY;
  /** Whether an ingest ends as a link that breaks before its answer is there. */
  losesAnswers = false;
  /** What `exposeBlocks` waits for. */
  exposing: Promise<void> = Promise.resolve();
  readonly #server = createServer();

  async start(onDisk: readonly DiskBlock[] = []): Promise<void> {
    for (const { key } of onDisk) this.disk.add(hex(key));
    this.#server.add(StoreSidecarService, {
      describeStore: async () => ({
        epoch: 1n,
        transferAddress: "127.0.0.1:1",
        blockBytes: 100n,
        memoryBytes: 1_600n,
        diskBytes: 10_000n,
      }),
      listBlocks: async (_request, call) => {
        call.write({ blocks: [...onDisk] });
      },
      ingestBlocks: async ({ keys, firstBlock }) => {
        const taken = keysOf(keys).slice(0, this.ingestMax);
        this.ingests.push({ firstBlock, count: taken.length });
        for (const key of taken) this.memory.add(key);
        if (this.losesAnswers) throw new KvasirError({ reason: "unavailable", message: "the answer is lost" });
        return { storedCount: taken.length };
      },
      exposeBlocks: async ({ keys, leaseId }) => {
        await this.exposing;
        const wanted = keysOf(keys);
        const missing = wanted.findIndex((key) => !this.memory.has(key) && !this.disk.has(key));
        const found = missing === -1 ? wanted : wanted.slice(0, missing);
        const fromDisk = found.map((key) => !this.memory.has(key));
        for (const key of found) this.memory.add(key);
        if (found.length > 0) this.leases.set(hex(leaseId), found);
        return { exposedCount: found.length, fromDisk, nextIsMissing: missing !== -1 };
      },
      withdrawBlocks: async ({ leaseId }) => {
        this.leases.delete(hex(leaseId));
        return {};
      },
      persistBlocks: async ({ keys }) => {
        const durable = keysOf(keys).map((key) => this.memory.has(key));
        for (const [index, key] of keysOf(keys).entries()) if (durable[index]) this.disk.add(key);
        return { durable };
      },
      removeBlocks: async ({ keys, memoryOnly }) => {
        for (const key of keysOf(keys)) {
          this.memory.delete(key);
          if (!memoryOnly) this.disk.delete(key);
        }
        return {};
      },
      listStoreSpans: async () => ({ spans: [] }),
      readStoreStats: async () => ({ memoryBlocks: BigInt(this.memory.size), diskBlocks: BigInt(this.disk.size) }),
    });
    await this.#server.listen(`unix:${this.socketPath}`);
  }

  stop(): Promise<void> {
    return this.#server.close(0);
  }
}
