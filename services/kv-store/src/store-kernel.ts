import { setTimeout as sleep } from "node:timers/promises";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { Metadata } from "@grpc/grpc-js";
import {
  type DescribeStoreResponse,
  type DiskBlock,
  type ExposeBlocksRequestSchema,
  type ExposeBlocksResponse,
  type IngestBlocksRequestSchema,
  type ReadStoreStatsResponse,
  type Span,
  StoreSidecarService,
} from "@kvasir/proto";
import { createClient, type RpcClient } from "@kvasir/rpc";

const CALL_DEADLINE_MS = 10_000;
/** A pull ends by itself where nothing moves; this is for a sidecar that hangs. */
const INGEST_DEADLINE_MS = 60_000;
const RETRY_FIRST_MS = 50;
const RETRY_MAX_MS = 1_000;

/** One incarnation's sidecar. */
export class StoreKernel {
  readonly #client: RpcClient<typeof StoreSidecarService>;
  readonly #gone = new AbortController();

  constructor(socketPath: string) {
    this.#client = createClient(StoreSidecarService, `unix:${socketPath}`);
  }

  describe(): Promise<DescribeStoreResponse> {
    return this.#client.describeStore({}, { deadlineMs: CALL_DEADLINE_MS });
  }

  /** What was on disk when it started. May be asked once. */
  async *blocksOnDisk(): AsyncGenerator<DiskBlock> {
    for await (const { blocks } of this.#client.listBlocks({})) yield* blocks;
  }

  /** Answers with the number of blocks that came, from the first on. */
  async ingest(request: MessageInitShape<typeof IngestBlocksRequestSchema>): Promise<number> {
    return (await this.#client.ingestBlocks(request, { deadlineMs: INGEST_DEADLINE_MS })).storedCount;
  }

  expose(
    request: MessageInitShape<typeof ExposeBlocksRequestSchema>,
    metadata: Metadata,
  ): Promise<ExposeBlocksResponse> {
    return this.#client.exposeBlocks(request, { metadata, deadlineMs: CALL_DEADLINE_MS });
  }

  /** Resolves when nobody reads the lease's blocks, or when the sidecar is gone. */
  async withdraw(leaseId: Uint8Array): Promise<void> {
    for (let delayMs = RETRY_FIRST_MS; !this.#gone.signal.aborted; delayMs = Math.min(2 * delayMs, RETRY_MAX_MS)) {
      try {
        await this.#client.withdrawBlocks({ leaseId }, { deadlineMs: CALL_DEADLINE_MS });
        return;
      } catch {
        await sleep(delayMs, undefined, { signal: this.#gone.signal }).catch(() => undefined);
      }
    }
  }

  /** For each, whether it is durable. */
  async persist(keys: Uint8Array): Promise<readonly boolean[]> {
    return (await this.#client.persistBlocks({ keys })).durable;
  }

  async remove(keys: Uint8Array, memoryOnly: boolean): Promise<void> {
    await this.#client.removeBlocks({ keys, memoryOnly }, { deadlineMs: CALL_DEADLINE_MS });
  }

  async spans(traceId: string): Promise<readonly Span[]> {
    return (await this.#client.listStoreSpans({ traceId }, { deadlineMs: 2_000 })).spans;
  }

  stats(): Promise<ReadStoreStatsResponse> {
    return this.#client.readStoreStats({}, { deadlineMs: 2_000 });
  }

  close(): void {
    this.#gone.abort();
    this.#client.channel.close();
  }
}
