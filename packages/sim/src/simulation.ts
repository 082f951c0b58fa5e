import {
  type Instant,
  nanosFromMs,
  PREDICTION_DEFAULTS,
  type PrefixFetchPlan,
  type PrefixIndexOptions,
  type RequestKey,
  type RequestShape,
  type RouterEffect,
  type RouterEvent,
  RouterState,
  STEPS_IN_FLIGHT_MAX,
  unreachable,
} from "@kvasir/core";
import type { SimulationSpec } from "./cluster-spec.ts";
import { EventQueue } from "./event-queue.ts";
import { Prompts } from "./prompts.ts";
import { randomOf } from "./random.ts";
import { type RequestWorld, SimulatedRequest } from "./simulated-request.ts";
import { SimulatedRouters } from "./simulated-routers.ts";
import { SimulatedStore, type UsedBlocks } from "./simulated-store.ts";
import { SimulatedWorker, TENANT } from "./simulated-worker.ts";
import type { Trace, TraceRequest } from "./trace.ts";

/** A worker that has nothing to say says so once in this time. */
const HEARTBEAT = nanosFromMs(1_000);
const MODEL = "model";
const FINGERPRINT = "00".repeat(16);

export interface SimulationResult {
  readonly requests: readonly SimulatedRequest[];
  readonly workers: readonly SimulatedWorker[];
  /** Virtual time at the end of the last request. */
  readonly endMs: number;
  /** Snapshots of caches that a router asked for. */
  readonly snapshotCount: number;
}

/**
 * One run of a cluster in virtual time. The router's state, the workers' step schedulers, both sides of each hand-over and the gateway's
 * attempts are the production modules; sidecars are device profiles, connections are links and a time for each message. Nothing reads a clock
 * or a random number that is not drawn from the seed, so that one spec and one trace give one result, bit for bit.
 */
export class Simulation implements RequestWorld {
  readonly events = new EventQueue();
  readonly rpcNanos: number;
  readonly #spec: SimulationSpec;
  readonly #routers: SimulatedRouters;
  readonly #random: () => number;
  /** Requests that have no placement, with the workers that failed them. */
  readonly #asking = new Map<SimulatedRequest, readonly string[]>();
  readonly #shapes = new Map<SimulatedRequest, RequestShape>();
  /** Under which leader each was asked for last. */
  readonly #askedIn = new Map<SimulatedRequest, number>();
  readonly #workers: SimulatedWorker[] = [];
  readonly #stores: SimulatedStore[] = [];
  readonly #workerById = new Map<string, SimulatedWorker>();
  readonly #streams = new Map<SimulatedWorker, { streamId: number; sequence: number; sentAt: number }>();
  readonly #running = new Set<SimulatedRequest>();
  readonly #requests: SimulatedRequest[] = [];
  #prompts: Prompts;
  /** Snapshots of caches that routers asked for. */
  snapshotCount = 0;
  #nextStreamId = 1;
  #arrivalsLeft = 0;

  constructor(spec: SimulationSpec) {
    this.#spec = spec;
    this.rpcNanos = nanosFromMs(spec.rpcMs);
    this.#prompts = new Prompts(spec.blockSize, 0);
    const { believed } = spec.profile;
    this.#random = randomOf(spec.seed);
    const routerOptions = {
      queueMax: spec.queueMax,
      queueTimeout: nanosFromMs(60_000),
      noWorkerGrace: nanosFromMs(5_000),
      localPrefillAfter: nanosFromMs(1_000),
      positionInterval: nanosFromMs(1e9),
      view: { silenceMax: nanosFromMs(5_000), returnGrace: nanosFromMs(5_000) },
      prediction: {
        ...PREDICTION_DEFAULTS,
        prefillTokensPerSecond: 1_000 / (believed.promptTokenMs + believed.fixedMs / spec.tokenBudget),
        decodeStepMs: believed.fixedMs + believed.decodeMs,
        kvBytesPerSecond: spec.link.bytesPerSecond,
        handoverMs: 4 * spec.rpcMs,
      },
      prefixIndex: prefixRoom(spec),
      ...(spec.workerQueue === undefined ? {} : { workerQueue: spec.workerQueue }),
    };
    const leader = new RouterState(
      spec.policy === undefined ? routerOptions : { ...routerOptions, policy: spec.policy },
    );
    const standbys = (spec.routerFaults ?? []).map(() => new RouterState(routerOptions));
    this.#routers = new SimulatedRouters([leader, ...standbys]);
    spec.roles.forEach((role, index) => {
      const { blockSize } = spec;
      const profile = spec.profileByRole?.[role] ?? spec.profile;
      const quirk = spec.quirks?.find(({ workerIndex }) => workerIndex === index);
      const workerId = `${role[0]}${String(index).padStart(4, "0")}`;
      const worker = new SimulatedWorker(
        {
          facts: {
            workerId,
            role,
            address: `${workerId}:1`,
            model: MODEL,
            fingerprint: FINGERPRINT,
            exactFingerprint: FINGERPRINT,
            kvModel: { modelRevision: MODEL, layerCount: 1, kvHeadCount: 1, headSize: 1, rope: "none" },
            kvDtype: "bf16",
            blockSize,
            kvBytesPerToken: profile.kvBytesPerToken,
            blockCount: Math.floor(profile.kvTokenCapacity / blockSize),
            contextLength: profile.contextLength,
            transferAddress: `${workerId}:2`,
          },
          profile,
          tokenBudget: spec.tokenBudget,
          sequenceCountMax: spec.sequenceCountMax,
          stepsInFlightMax: spec.stepsInFlightMax ?? STEPS_IN_FLIGHT_MAX,
          stepOverheadMs: spec.stepOverheadMs,
          link: quirk?.link ?? spec.link,
          measuresLinks: spec.measuresLinks ?? false,
          slowdown: quirk?.slowdown ?? 1,
          distort: quirk?.distort,
          usedBlocks: (spec.stores ?? []).length > 0 ? (used, worker) => this.#blocksUsed(used, worker) : undefined,
        },
        this.events,
      );
      this.#workers.push(worker);
      this.#workerById.set(workerId, worker);
    });
    this.#addStores(spec);
  }

  #addStores({ stores = [], blockSize, profile }: SimulationSpec): void {
    for (const [index, store] of stores.entries()) {
      const workerId = `store-${index}`;
      const facts = {
        ...{ workerId, address: `${workerId}:1`, transferAddress: `${workerId}:2` },
        ...{ model: MODEL, exactFingerprint: FINGERPRINT, blockSize },
      };
      this.#stores.push(new SimulatedStore(facts, store, blockSize * profile.kvBytesPerToken, this.events));
    }
  }

  /** A text is kept by one store, which its first block names. */
  #blocksUsed(used: UsedBlocks, worker: SimulatedWorker): void {
    const store = this.#stores[(used.hashes[0] ?? 0) % this.#stores.length];
    this.events.after(this.rpcNanos, () => store?.used(used, worker.link));
  }

  borrow(
    { holder, isStore }: PrefixFetchPlan,
    hashes: Uint8Array,
    fromBlock: number,
  ): { blockCount: number; at: Instant } | undefined {
    const { workerId } = holder.facts;
    if (isStore === true) {
      return this.#stores.find(({ facts }) => facts.workerId === workerId)?.lend(hashes, fromBlock, TENANT);
    }
    const worker = this.#workerById.get(workerId);
    if (worker?.isAlive !== true) return undefined;
    const blockCount = worker.scheduler.pool.find(hashes).length;
    const { blockSize, kvBytesPerToken } = worker.facts;
    const bytes = Math.max(0, blockCount - fromBlock) * blockSize * kvBytesPerToken;
    return { blockCount, at: worker.link.arrival(bytes, this.events.now) };
  }

  /** Runs until every request has ended. */
  run(trace: Trace): SimulationResult {
    this.#prompts = new Prompts(this.#spec.blockSize, trace.prefixBlockSize);
    for (const worker of this.#workers) this.#attach(worker);
    for (const store of this.#stores) this.#attachStore(store);
    this.#arrivalsLeft = trace.requests.length;
    for (const [key, request] of trace.requests.entries()) {
      this.events.at(nanosFromMs(request.arrivalMs) as number as Instant, () => this.#arrive(key, request));
    }
    for (const fault of this.#spec.faults ?? []) {
      this.events.at(nanosFromMs(fault.atMs) as number as Instant, () =>
        this.#kill(fault.workerIndex, fault.restartAfterMs),
      );
    }
    for (const { atMs, takeOverMs } of this.#spec.routerFaults ?? []) {
      this.events.at(nanosFromMs(atMs) as number as Instant, () => this.#routers.kill());
      this.events.at(nanosFromMs(atMs + takeOverMs) as number as Instant, () => this.#takeOver());
    }
    this.#tick();
    while ((this.#arrivalsLeft > 0 || this.#running.size > 0) && this.events.runNext());
    const { snapshotCount } = this;
    return { requests: this.#requests, workers: this.#workers, endMs: this.events.now / 1e6, snapshotCount };
  }

  worker(workerId: string): SimulatedWorker {
    return this.#workerById.get(workerId) as SimulatedWorker;
  }

  firstToken(request: SimulatedRequest): void {
    this.events.after(this.rpcNanos, () => this.#tell({ kind: "FirstTokenArrived", key: request.key as RequestKey }));
  }

  placeAgain(request: SimulatedRequest, failedWorkerIds: readonly string[]): void {
    this.events.after(this.rpcNanos, () => {
      if (this.#running.has(request)) this.#ask(request, failedWorkerIds);
    });
  }

  ended(request: SimulatedRequest): void {
    this.#running.delete(request);
    this.#asking.delete(request);
    this.#shapes.delete(request);
    this.#askedIn.delete(request);
    if (request.outcome === "rejected") return;
    const outcome = { outputTokenCount: request.tokenCount, tbtMs: request.tpotMs };
    const told = request.outcome === "finished" ? { outcome } : {};
    this.events.after(this.rpcNanos, () =>
      this.#tell({ kind: "RequestEnded", key: request.key as RequestKey, ...told }),
    );
  }

  #arrive(key: number, trace: TraceRequest): void {
    const prompt = this.#prompts.of(key, trace);
    const request = new SimulatedRequest(key, trace, prompt, this);
    this.#arrivalsLeft--;
    this.#requests.push(request);
    this.#running.add(request);
    const { objectives } = this.#spec;
    const shape: RequestShape = {
      model: MODEL,
      promptTokenCount: trace.promptTokenCount,
      maxTokens: trace.outputTokenCount,
      tenant: trace.tenant,
      promptHashes: [{ fingerprint: FINGERPRINT, blockSize: this.#spec.blockSize, hashes: prompt.chain.bytes() }],
      ...(objectives === undefined ? {} : { objectives: { ...objectives, mayBeLate: false } }),
    };
    this.#shapes.set(request, shape);
    this.events.after(this.rpcNanos, () => this.#ask(request, []));
  }

  /** Asks the router that leads, or the next one as soon as it does. */
  #ask(request: SimulatedRequest, excludedWorkerIds: readonly string[]): void {
    const key = request.key as RequestKey;
    const shape = this.#shapes.get(request);
    if (shape === undefined) return;
    this.#asking.set(request, excludedWorkerIds);
    if (!this.#routers.isLed) return;
    const { generation } = this.#routers;
    const isKnown = this.#askedIn.get(request) === generation;
    this.#askedIn.set(request, generation);
    if (isKnown) this.#tell({ kind: "RequestRetried", key, excludedWorkerIds });
    else this.#tell({ kind: "RequestArrived", key, request: shape, excludedWorkerIds });
  }

  /** Who has no answer asks the new leader, in the order in which they came. */
  #takeOver(): void {
    this.#routers.takeOver();
    for (const [request, excludedWorkerIds] of [...this.#asking]) this.#ask(request, excludedWorkerIds);
  }

  #tell(event: RouterEvent): void {
    for (const effect of this.#routers.tell(event, this.events.now)) this.#perform(effect);
  }

  #perform(effect: RouterEffect): void {
    switch (effect.kind) {
      case "SendPlacement": {
        const request = this.#requests[effect.key];
        if (request !== undefined) this.#asking.delete(request);
        request?.placed(effect.decision);
        break;
      }
      case "RejectRequest":
        this.#requests[effect.key]?.rejected(effect.reason);
        break;
      case "WantCacheSnapshot":
        this.#sendSnapshot(effect.streamId);
        break;
      case "AcknowledgeWorker":
      case "RefuseWorker":
      case "ReportLostWorker":
      case "SendQueued":
        break;
      default:
        unreachable(effect);
    }
  }

  #attach(worker: SimulatedWorker): void {
    const streamId = this.#nextStreamId++;
    this.#streams.set(worker, { streamId, sequence: 1, sentAt: 0 });
    this.#tell({ kind: "WorkerAttached", streamId, epoch: worker.epoch, sequence: 1, facts: worker.facts });
    this.#report(worker);
  }

  #attachStore(store: SimulatedStore): void {
    const { facts, epoch } = store;
    const stream = { streamId: this.#nextStreamId++, sequence: 1 };
    this.#tell({ kind: "StoreAttached", streamId: stream.streamId, epoch, sequence: 1, facts });
    const report = (): void => {
      const { streamId } = stream;
      for (const change of store.changes()) {
        this.#tell({ kind: "WorkerCacheChanged", streamId, epoch, sequence: ++stream.sequence, change });
      }
      const load = { isDraining: false };
      this.#tell({ kind: "StoreReported", streamId, epoch, sequence: ++stream.sequence, load });
      this.events.after(nanosFromMs(this.#spec.reportMs), report);
    };
    report();
  }

  #report(worker: SimulatedWorker): void {
    const stream = this.#streams.get(worker);
    if (stream === undefined) return;
    const load = worker.load();
    const { streamId } = stream;
    const { epoch } = worker;
    const quirk = this.#spec.quirks?.find(({ workerIndex }) => this.#workers[workerIndex] === worker);
    for (const change of worker.cacheChanges(quirk?.hidesRemovals ?? false)) {
      if (quirk?.cacheEventLoss !== undefined && this.#random() < quirk.cacheEventLoss) continue;
      this.#tell({ kind: "WorkerCacheChanged", streamId, epoch, sequence: ++stream.sequence, change });
    }
    stream.sentAt = this.events.now;
    const links = worker.measuredLinks();
    this.#tell({ kind: "WorkerReported", streamId, epoch, sequence: ++stream.sequence, load, links });
  }

  #sendSnapshot(streamId: number): void {
    const entry = [...this.#streams].find(([, stream]) => stream.streamId === streamId);
    if (entry === undefined) return;
    const [worker, stream] = entry;
    const { epoch } = worker;
    this.snapshotCount++;
    const change = worker.cacheSnapshot();
    this.#tell({ kind: "WorkerCacheChanged", streamId, epoch, sequence: ++stream.sequence, change });
  }

  /** Reports are due at their interval while a worker is busy, and as heartbeats else. */
  #tick(): void {
    const interval = nanosFromMs(this.#spec.reportMs);
    for (const worker of this.#workers) {
      const stream = this.#streams.get(worker);
      if (stream === undefined || !worker.isAlive) continue;
      const silence = this.events.now - stream.sentAt;
      const isBusy = worker.scheduler.inFlightCount > 0;
      if (silence >= HEARTBEAT || (isBusy && silence >= interval)) this.#report(worker);
    }
    this.#tell({ kind: "Ticked" });
    this.events.after(interval, () => this.#tick());
  }

  #kill(workerIndex: number, restartAfterMs: number): void {
    const worker = this.#workers[workerIndex];
    const stream = worker === undefined ? undefined : this.#streams.get(worker);
    if (worker === undefined || stream === undefined) return;
    worker.isAlive = false;
    this.#streams.delete(worker);
    this.#tell({ kind: "WorkerLeft", streamId: stream.streamId });
    for (const request of [...this.#running]) request.workerLost(worker);
    this.events.after(nanosFromMs(restartAfterMs), () => {
      worker.restart();
      this.#attach(worker);
    });
  }
}

/** Room for every block that the workers could hold, twice over. */
function prefixRoom({ roles, profile, blockSize, stores = [] }: SimulationSpec): PrefixIndexOptions {
  const stored = stores.reduce((sum, store) => sum + store.memoryBytes + store.diskBytes, 0) / profile.kvBytesPerToken;
  const tokens = 2 * (roles.length * profile.kvTokenCapacity + stored);
  const blockCapacity = Math.max(1_024, Math.ceil(tokens / blockSize));
  return { blockCapacity, holderCapacity: 32 * Math.ceil((2 * roles.length + stores.length + 32) / 32) };
}

export function simulate(spec: SimulationSpec, trace: Trace): SimulationResult {
  return new Simulation(spec).run(trace);
}
