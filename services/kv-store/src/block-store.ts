import type { Metadata } from "@grpc/grpc-js";
import {
  type AdmissionPolicy,
  BLOCK_HASH_BYTES,
  CacheJournal,
  type Instant,
  type KeptText,
  keptKeys,
  NEVER,
  type RendezvousNode,
  rendezvous,
  replicaCount,
  runsOf,
  StoreAdmission,
  StoreDirectory,
  type StoredBlock,
  type StoreEffect,
  type StoreEvent,
  type StoreLimits,
} from "@kvasir/core";
import {
  CacheMedium,
  type DescribeStoreResponse,
  type KvLayout,
  type LendingService,
  type LendStart,
  type ReadStoreStatsResponse,
  type UsedBlocks,
} from "@kvasir/proto";
import { type LentBlocks, type Log, now, type PeerClients, type ToldCache } from "@kvasir/worker";
import type { Tracer } from "@opentelemetry/api";
import { instantFromUnixMs } from "./kept-texts.ts";
import { lendFromStore } from "./lend.ts";
import type { StoreMeter } from "./metrics.ts";
import { Puller } from "./puller.ts";
import { SidecarTasks } from "./sidecar-tasks.ts";
import type { StoreKernel } from "./store-kernel.ts";
import type { FollowedWorker } from "./worker-followers.ts";

/** Share of the memory tier that stays free for what is read from disk. Larger: more of it at once; smaller: more blocks in memory. */
const MEMORY_FREE_SHARE = 1 / 8;
/** Share of the disk tier up to which every block is written (docs/results/eviction.md). */
const DISK_OPEN_SHARE = 0.9;
/** Most blocks whose uses are remembered, as a multiple of those that are held. */
const USES_REMEMBERED_PER_BLOCK = 4;
const USES_REMEMBERED_MIN = 1 << 16;
/** Changes that routers can catch up with before they get a snapshot. */
const JOURNAL_CHANGES = 1 << 16;
const RUN_BLOCK_MAX = 64;
const PULLS_PER_WORKER = 2;
/** Blocks that wait to be pulled, in times of those that may be under way. */
const WAITING_PER_PULLED = 64;

export interface BlockStoreSettings {
  readonly storeId: string;
  readonly admission: AdmissionPolicy;
  readonly pullBytesPerSecond: number;
  readonly usesPerReplica: number;
  /** Share of both tiers. */
  readonly tenantShareMax: number;
  /** 0: without end. */
  readonly ttlSeconds: number;
  readonly stagingBlockCount: number;
  /** Share of both tiers that blocks may take which operators keep. */
  readonly keptShareMax: number;
  readonly leaseMs: number;
}

export interface BlockStoreFacts {
  readonly settings: BlockStoreSettings;
  readonly epoch: bigint;
  readonly ticketKey: Uint8Array;
  readonly layout: KvLayout;
  readonly kernel: StoreKernel;
  readonly description: DescribeStoreResponse;
  readonly workers: PeerClients<typeof LendingService>;
  readonly meter: StoreMeter;
  readonly tracer: Tracer;
  readonly log: Log;
  /** Stores of the same layout, this one among them. */
  readonly nodes: () => readonly RendezvousNode[];
  /** Something that routers are told changed. */
  readonly changed: () => void;
}

/** What lives and dies with one start of the sidecar: the shell around `StoreDirectory`, whose effects it has the sidecar do. */
export class BlockStore {
  readonly facts: BlockStoreFacts;
  readonly limits: StoreLimits;
  readonly directory: StoreDirectory;
  readonly caches: readonly ToldCache[];
  readonly #journals: Readonly<Record<"memory" | "disk", CacheJournal>>;
  readonly #admission: StoreAdmission;
  readonly #puller: Puller;
  readonly #tasks: SidecarTasks;
  readonly #over = Promise.withResolvers<void>();
  /** Told last by a worker that computes prompts; 0: by none yet. */
  #prefillTokensPerSecond = 0;
  #keptTexts: readonly KeptText[] = [];
  #nextKeptEnd: Instant = NEVER;
  /** Loans that run. */
  loanCount = 0;
  /** Nothing new is pulled or lent. */
  isDraining = false;

  constructor(facts: BlockStoreFacts) {
    this.facts = facts;
    const { settings, description, kernel, layout, workers, meter } = facts;
    const blockBytes = Number(description.blockBytes);
    this.limits = limitsOf(description, settings);
    this.directory = new StoreDirectory(this.limits);
    this.#journals = { memory: new CacheJournal(JOURNAL_CHANGES), disk: new CacheJournal(JOURNAL_CHANGES) };
    const told = (medium: CacheMedium, name: "memory" | "disk"): ToldCache => ({
      medium,
      journal: this.#journals[name],
      snapshot: () => Buffer.concat([...this.directory.keysOn(name)]),
    });
    this.caches = [told(CacheMedium.STORE, "memory"), told(CacheMedium.DISK, "disk")];
    this.#admission = new StoreAdmission({
      policy: settings.admission,
      keyCount: Math.max(USES_REMEMBERED_MIN, USES_REMEMBERED_PER_BLOCK * this.limits.blockCount),
      blockTokenCount: layout.blockSize,
      blockBytes,
      bytesPerSecond: settings.pullBytesPerSecond,
    });
    this.#tasks = new SidecarTasks(kernel, {
      persisted: (key, isDurable) => {
        meter.persisted(isDurable ? "durable" : "failed", 1);
        this.apply({ kind: isDurable ? "BlockPersisted" : "PersistFailed", key });
      },
    });
    const pulledBlockMax = Math.max(1, Math.floor(settings.stagingBlockCount / 2));
    this.#puller = new Puller({
      queue: {
        blockBytes,
        bytesPerSecond: settings.pullBytesPerSecond,
        runBlockMax: Math.min(RUN_BLOCK_MAX, pulledBlockMax),
        blockMax: pulledBlockMax,
        perSourceMax: PULLS_PER_WORKER,
        waitingBlockMax: WAITING_PER_PULLED * pulledBlockMax,
      },
      ...{ kernel, workers, meter },
      removed: () => this.#tasks.removed,
      expiresAtUnixMs: () => (settings.ttlSeconds === 0 ? 0n : BigInt(Date.now() + settings.ttlSeconds * 1_000)),
      settled: ({ keys }, storedCount, isKnown) => {
        for (const [index, key] of keys.entries()) {
          this.apply({ kind: index < storedCount ? "BlockArrived" : "PullFailed", key });
          // What came all the same would lie there, known to nobody.
          if (!isKnown) this.#tasks.remove(key, false);
        }
      },
    });
  }

  get epoch(): bigint {
    return this.facts.epoch;
  }

  get waitingBlockCount(): number {
    return this.#puller.waitingBlockCount;
  }

  get pullingBlockCount(): number {
    return this.#puller.pullingBlockCount;
  }

  /** Resolves when the incarnation is over. */
  get ended(): Promise<void> {
    return this.#over.promise;
  }

  stats(): Promise<ReadStoreStatsResponse | undefined> {
    return this.facts.kernel.stats().catch(() => undefined);
  }

  /** Files what is on disk. */
  async recover(): Promise<void> {
    const byteCount = Number(this.facts.description.blockBytes);
    const { blockSize } = this.facts.layout;
    for await (const { key, tenantScope, position, expiresAtUnixMs } of this.facts.kernel.blocksOnDisk()) {
      const tenant = Buffer.from(tenantScope).toString("hex");
      const expiresAt = instantFromUnixMs(expiresAtUnixMs);
      const block: StoredBlock = { key, tenant, position: position * blockSize, byteCount, expiresAt };
      this.apply({ kind: "BlockRecovered", block });
    }
  }

  /** A request used blocks of a worker: those that are worth it, and this store's to keep, are pulled. */
  used(worker: FollowedWorker, { requestId, tenantScope, hashes, prefillTokensPerSecond }: UsedBlocks): void {
    const { layout, meter, settings, description } = this.facts;
    const theirs = worker.hello.layout;
    const isExact =
      theirs?.blockSize === layout.blockSize && Buffer.compare(theirs.exactFingerprint, layout.exactFingerprint) === 0;
    if (!isExact || hashes.length < BLOCK_HASH_BYTES) return;
    const blockCount = Math.floor(hashes.length / BLOCK_HASH_BYTES);
    // Workers that only decode have no speed of their own.
    if (prefillTokensPerSecond > 0) this.#prefillTokensPerSecond = prefillTokensPerSecond;
    const use = { requestId, hashes, prefillTokensPerSecond: this.#prefillTokensPerSecond };
    const admittedCount = Math.max(this.#admission.used(use), this.#keptCount(hashes));
    if (!this.#isOurs(hashes)) {
      meter.used("elsewhere", blockCount);
      return;
    }
    meter.used("not_admitted", blockCount - admittedCount);
    if (this.isDraining || admittedCount === 0) return;
    const tenant = Buffer.from(tenantScope).toString("hex");
    const byteCount = Number(description.blockBytes);
    const { ttlSeconds } = settings;
    const expiresAt = ttlSeconds === 0 ? NEVER : ((now() + ttlSeconds * 1e9) as Instant);
    const blocks = Array.from({ length: admittedCount }, (_, index): StoredBlock => {
      const key = hashes.slice(index * BLOCK_HASH_BYTES, (index + 1) * BLOCK_HASH_BYTES);
      return { key, tenant, position: index * layout.blockSize, byteCount, expiresAt };
    });
    const knownCount = blocks.filter(({ key }) => this.directory.has(key)).length;
    let pulledCount = 0;
    const effects = this.directory.apply({ kind: "BlocksOffered", sourceId: worker.workerId, blocks }, now());
    for (const effect of effects) {
      if (effect.kind !== "PullBlocks") {
        this.#perform(effect);
        continue;
      }
      pulledCount += effect.keys.length;
      const wanted = new Set(effect.keys.map((key) => Buffer.from(key).toString("hex")));
      const numbered = blocks
        .map(({ key }, index) => ({ key, index }))
        .filter(({ key }) => wanted.has(Buffer.from(key).toString("hex")));
      for (const run of runsOf(numbered, ({ index }) => index)) {
        const keys = run.map(({ key }) => key);
        this.#puller.add(worker, { sourceId: worker.workerId, tenant, firstBlock: run[0]?.index ?? 0, keys });
      }
    }
    meter.used("known", knownCount);
    meter.used("pulled", pulledCount);
    meter.used("no_room", Math.max(0, admittedCount - pulledCount - knownCount));
    this.facts.changed();
  }

  workerLost(workerId: string): void {
    this.#puller.sourceLost(workerId);
  }

  lend(request: LendStart, metadata: Metadata): Promise<LentBlocks> {
    return lendFromStore(this, request, metadata);
  }

  /** Blocks whose time is over leave, and pins end. */
  tick(): void {
    if (now() >= this.#nextKeptEnd) this.keep(this.#keptTexts);
    this.apply({ kind: "TimePassed" });
  }

  /** From now on operators want these to stay. */
  keep(texts: readonly KeptText[]): void {
    const blockMax = Math.floor(this.facts.settings.keptShareMax * this.limits.blockCount);
    const at = now();
    this.#keptTexts = texts;
    this.#nextKeptEnd = texts.reduce(
      (next, { expiresAt }) => (expiresAt > at && expiresAt < next ? expiresAt : next),
      NEVER,
    );
    this.apply({ kind: "BlocksKept", keys: keptKeys(texts, blockMax, at) });
  }

  apply(event: StoreEvent): void {
    const effects = this.directory.apply(event, now());
    for (const effect of effects) this.#perform(effect);
    if (effects.length > 0) this.facts.changed();
  }

  /** The sidecar is gone: nothing is waited for any more. */
  end(): void {
    this.#puller.close();
    this.facts.kernel.close();
    this.#over.resolve();
  }

  #perform(effect: StoreEffect): void {
    switch (effect.kind) {
      case "PersistBlock":
        this.#tasks.persist(effect.key);
        break;
      case "DropFromMemory":
        this.#tasks.remove(effect.key, true);
        break;
      case "RemoveBlock":
        this.#tasks.remove(effect.key, false);
        break;
      case "TellStored":
        this.#journals[effect.medium].append("stored", effect.key);
        break;
      case "TellRemoved":
        this.facts.meter.left(effect.medium, 1);
        this.#journals[effect.medium].append("removed", effect.key);
        break;
      case "PullBlocks":
        throw new Error("a pull that no use of blocks asked for");
    }
  }

  /** So many of the blocks, from the first on, an operator wants to stay. */
  #keptCount(hashes: Uint8Array): number {
    let count = 0;
    const keyAt = (index: number) => hashes.subarray(index * BLOCK_HASH_BYTES, (index + 1) * BLOCK_HASH_BYTES);
    while ((count + 1) * BLOCK_HASH_BYTES <= hashes.length && this.directory.isKept(keyAt(count))) count++;
    return count;
  }

  /** Whether this store is among those that keep a text: by its first block, so that one store has all of it. */
  #isOurs(hashes: Uint8Array): boolean {
    const { nodes, settings } = this.facts;
    const all = nodes();
    const count = replicaCount(this.#admission.usesOf(hashes), settings.usesPerReplica, all.length);
    return rendezvous(all, hashes, count).some(({ id }) => id === settings.storeId);
  }
}

function limitsOf(
  { memoryBytes, diskBytes, blockBytes }: DescribeStoreResponse,
  { tenantShareMax }: BlockStoreSettings,
): StoreLimits {
  const memory = Math.floor(Number(memoryBytes) * (1 - MEMORY_FREE_SHARE));
  const disk = Number(diskBytes);
  return {
    memoryBytes: memory,
    diskBytes: disk,
    tenantBytes: Math.ceil((memory + disk) * tenantShareMax),
    blockCount: Math.max(1, Math.ceil((memory + disk) / Number(blockBytes))),
    diskOpenShare: DISK_OPEN_SHARE,
  };
}
