import { setTimeout as sleep } from "node:timers/promises";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { Metadata } from "@grpc/grpc-js";
import { KvasirError } from "@kvasir/core";
import {
  type Constraint,
  type DescribeResponse,
  type FetchRequestSchema,
  KernelService,
  type PublishRequestSchema,
  type Span,
  type StatsResponse,
  type SwapRequestSchema,
  type SwapResponse,
} from "@kvasir/proto";
import { createClient, errorFromService, type RpcClient } from "@kvasir/rpc";

const CALL_DEADLINE_MS = 10_000;
/** Large schemas take a second, on a busy machine several. */
const COMPILE_DEADLINE_MS = 30_000;
const RETRY_FIRST_MS = 50;
const RETRY_MAX_MS = 1_000;

export type ExecuteStream = ReturnType<RpcClient<typeof KernelService>["execute"]>;
export type FetchStream = ReturnType<RpcClient<typeof KernelService>["fetch"]>;

/**
 * One incarnation's sidecar. `release` and `fence` guard the reuse of blocks: they come back only when the sidecar has answered, or
 * when it is gone and with it everything that could touch a block.
 */
export class Kernel {
  readonly #client: RpcClient<typeof KernelService>;
  readonly #gone = new AbortController();

  constructor(socketPath: string) {
    this.#client = createClient(KernelService, `unix:${socketPath}`);
  }

  describe(): Promise<DescribeResponse> {
    return this.#client.describe({}, { deadlineMs: CALL_DEADLINE_MS });
  }

  /** Has a constraint compiled before its sequence starts; fails with `invalid_request` when it cannot be honoured. */
  async prepareConstraint(constraint: Constraint): Promise<void> {
    try {
      await this.#client.prepareConstraint({ constraint }, { deadlineMs: COMPILE_DEADLINE_MS });
    } catch (error) {
      throw errorFromService(error);
    }
  }

  execute(): ExecuteStream {
    return this.#client.execute();
  }

  async publish(request: MessageInitShape<typeof PublishRequestSchema>, metadata: Metadata): Promise<void> {
    await this.#client.publish(request, { metadata, deadlineMs: CALL_DEADLINE_MS });
  }

  fetch(request: MessageInitShape<typeof FetchRequestSchema>, metadata: Metadata): FetchStream {
    return this.#client.fetch(request, { metadata });
  }

  /**
   * Copies blocks to host slots or back; resolves when the bytes are in place. Aborting stops the copies, and `fence` with the swap's id tells when
   * they have stopped. Slots stay until they are released. Fails with `overloaded` when too few are free, with `unavailable` while something else
   * has a block.
   */
  swap(request: MessageInitShape<typeof SwapRequestSchema>, signal?: AbortSignal): Promise<SwapResponse> {
    return this.#client.swap(request, signal && { signal });
  }

  /** Ends a lease; of host slots only the named ones, where some are. */
  release(leaseId: Uint8Array, slotIds: number[] = []): Promise<void> {
    return this.#untilAnswered(() => this.#client.release({ leaseId, slotIds }, { deadlineMs: CALL_DEADLINE_MS }));
  }

  fence(leaseId: Uint8Array): Promise<void> {
    return this.#untilAnswered(() => this.#client.fence({ leaseId }, { deadlineMs: CALL_DEADLINE_MS }));
  }

  stats(): Promise<StatsResponse> {
    return this.#client.stats({}, { deadlineMs: 2_000 });
  }

  async spans(traceId: string): Promise<readonly Span[]> {
    return (await this.#client.listSpans({ traceId }, { deadlineMs: 2_000 })).spans;
  }

  /** The process is gone: nothing is waited for any more, calls under way fail. */
  close(): void {
    this.#gone.abort();
    this.#client.channel.close();
  }

  async #untilAnswered(call: () => Promise<unknown>): Promise<void> {
    for (let delayMs = RETRY_FIRST_MS; !this.#gone.signal.aborted; delayMs = Math.min(2 * delayMs, RETRY_MAX_MS)) {
      try {
        await call();
        return;
      } catch (error) {
        if (errorFromService(error).reason === "invalid_request") throw error;
        await sleep(delayMs, undefined, { signal: this.#gone.signal }).catch(() => undefined);
      }
    }
  }
}

export function sidecarLost(detail: string): KvasirError {
  return new KvasirError({
    reason: "unavailable",
    message: `the sidecar is gone (${detail}); retry elsewhere`,
    retryAfterMs: 1_000,
  });
}
