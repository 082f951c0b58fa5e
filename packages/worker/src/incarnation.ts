import type { MessageInitShape } from "@bufbuild/protobuf";
import {
  type Instant,
  type KvasirError,
  type Lease,
  LeaseTable,
  LoanTable,
  prefixRoot,
  RecentTimes,
  type SequenceId,
  type StepSchedulerOptions,
  TransferBook,
} from "@kvasir/core";
import type { DescribeResponse, KvLayout, KvSourceSchema } from "@kvasir/proto";
import { type AuditedBlocks, auditBlocks, LEASE_SLACK } from "./audit.ts";
import { now } from "./clock.ts";
import { Engine, type EngineHooks } from "./engine/engine.ts";
import type { Kernel } from "./kernel/kernel.ts";
import { CacheFeed } from "./lending/cache-feed.ts";
import { profilesOf } from "./transfer/traffic.ts";

/** Share of the pool that may be on loan to stores. Larger: more is stored in time; smaller: more room for requests. */
const LENT_SHARE_MAX = 1 / 8;

/** Everything that lives and dies with one start of the sidecar. */
export class Incarnation {
  readonly epoch: bigint;
  readonly ticketKey: Uint8Array;
  readonly kernel: Kernel;
  readonly engine: Engine;
  readonly description: DescribeResponse;
  readonly layout: KvLayout;
  readonly leases = new LeaseTable();
  readonly loans: LoanTable;
  readonly feed = new CacheFeed();
  readonly #over = Promise.withResolvers<void>();
  /** What is known of the links to other sidecars, and of the codec's levels. */
  readonly transfers: TransferBook;
  /** From the end of a fetch to its prompt's first token, in milliseconds, without what computing the rest was thought to take. */
  readonly fetchTails = new RecentTimes();
  readonly #waitingCountMax: number;
  readonly #cachesPrefixes: boolean;

  constructor(parts: {
    readonly epoch: bigint;
    readonly ticketKey: Uint8Array;
    readonly kernel: Kernel;
    readonly description: DescribeResponse;
    readonly limits: EngineLimits;
    readonly hooks: Omit<EngineHooks, "blocksUsed">;
  }) {
    const { description, limits } = parts;
    if (description.layout === undefined) throw new Error("the sidecar describes no KV layout");
    this.epoch = parts.epoch;
    this.ticketKey = parts.ticketKey;
    this.kernel = parts.kernel;
    this.description = description;
    this.layout = description.layout;
    this.transfers = new TransferBook(profilesOf(description));
    const options: StepSchedulerOptions = {
      blockCount: description.blockCount,
      blockSize: description.layout.blockSize,
      tokenBudget: Math.min(limits.stepTokenCount, description.stepTokenMax || limits.stepTokenCount),
      sequenceCountMax: limits.sequenceCountMax,
      pinnedShareMax: limits.pinnedShareMax,
    };
    this.#waitingCountMax = limits.waitingCountMax;
    this.#cachesPrefixes = limits.cachesPrefixes;
    this.engine = new Engine(parts.kernel.execute(), options, {
      ...parts.hooks,
      blocksUsed: ({ tenantScope, requestId }, hashes) => {
        const { prefillTokensPerSecond } = this.engine.meter;
        this.feed.tell({ tenantScope, requestId, hashes, prefillTokensPerSecond });
      },
    });
    const lentBlockMax = Math.max(1, Math.floor(description.blockCount * LENT_SHARE_MAX));
    this.loans = new LoanTable(this.engine.scheduler.pool, lentBlockMax);
  }

  /** Where others pull from, and what they may ask for. */
  get source(): MessageInitShape<typeof KvSourceSchema> {
    const { transferAddresses, codecProfiles } = this.description;
    return {
      ...{ layout: this.layout, shardAddresses: transferAddresses },
      codecProfileIds: codecProfiles.map(({ id }) => id),
    };
  }

  /** Resolves when the incarnation is over. */
  get ended(): Promise<void> {
    return this.#over.promise;
  }

  /** Whether the admission queue takes no more. */
  get isQueueFull(): boolean {
    return this.engine.scheduler.waitingCount >= this.#waitingCountMax;
  }

  /** Root of a tenant's block hashes; undefined when prefixes are not cached. The cache lives and dies with this incarnation. */
  prefixRootOf(tenantScope: Uint8Array): Uint8Array | undefined {
    if (!this.#cachesPrefixes) return undefined;
    const { exactFingerprint, blockSize } = this.layout;
    return prefixRoot({ tenantScope, fingerprint: exactFingerprint }, blockSize);
  }

  /** Nothing that is cached now is reused by requests to come; routers are told. Answers with how many blocks were kept. */
  clearCache(): number {
    const count = this.engine.scheduler.pool.clear();
    this.engine.apply({ kind: "TimePassed" });
    return count;
  }

  /**
   * The net below the hand-overs, which end by their own deadlines: closes the sequences of leases that ended and were not
   * released. Answers with those leases; there are none unless a hand-over has a defect.
   */
  sweepLeases(): readonly Lease[] {
    const lapsed = this.leases.expire((now() - LEASE_SLACK) as Instant);
    for (const lease of lapsed) this.engine.close(lease.sequenceId as SequenceId);
    return lapsed;
  }

  /** Where every block is, and whether anything live is behind it. */
  audit(): AuditedBlocks {
    return auditBlocks({
      sequences: this.engine.scheduler.sequences(),
      pool: this.engine.scheduler.pool,
      leases: this.leases,
      loans: this.loans.loans(),
      isOwned: (sequenceId) => this.engine.isOwned(sequenceId),
      now: now(),
    });
  }

  /** Fails what runs here, and stops waiting for the sidecar. */
  end(error: KvasirError): void {
    this.engine.fail(error);
    this.kernel.close();
    this.#over.resolve();
  }
}

export interface EngineLimits {
  /** Token budget of a step. */
  readonly stepTokenCount: number;
  readonly sequenceCountMax: number;
  readonly pinnedShareMax: number;
  /** Most requests that may wait for blocks. Larger: bursts are ridden out; smaller: they are sent elsewhere sooner. */
  readonly waitingCountMax: number;
  /** Whether KV of prompts and answers is kept for later requests of the same tenant. */
  readonly cachesPrefixes: boolean;
}
