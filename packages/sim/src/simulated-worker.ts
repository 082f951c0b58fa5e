import {
  type BlockId,
  type HolderEvent,
  type Instant,
  type MeasuredLink,
  msFromNanos,
  nanosFromMs,
  type ReportedLoad,
  type SchedulerEffect,
  type SchedulerEvent,
  type SequenceId,
  type SequenceSpec,
  type SliceResult,
  StepCostModel,
  type StepPlan,
  StepScheduler,
  type StepWork,
  type Token,
  TransferBook,
  type WorkerFacts,
} from "@kvasir/core";
import { type DeviceProfile, workOfPlan } from "./device-profile.ts";
import type { EventQueue } from "./event-queue.ts";
import { Link, type LinkOptions } from "./link.ts";
import type { UsedBlocks } from "./simulated-store.ts";

/** What somebody on this worker wants to hear of a sequence. */
export interface SequenceListener {
  admitted(blockIds: readonly BlockId[], cachedTokenCount: number, sequenceId: SequenceId): void;
  refused(): void;
  /** A step that computes a piece of its prompt was answered: so many tokens from the beginning are there. */
  computed(tokenCount: number): void;
  /** `isLast`: nothing comes after it. */
  sampled(isLast: boolean): void;
  openFetch(): void;
}

export interface SimulatedWorkerOptions {
  readonly facts: WorkerFacts;
  readonly profile: DeviceProfile;
  readonly tokenBudget: number;
  readonly sequenceCountMax: number;
  readonly stepsInFlightMax: number;
  readonly stepOverheadMs: number;
  readonly link: LinkOptions;
  readonly measuresLinks: boolean;
  /** How much slower its device is than the profile says. */
  readonly slowdown: number;
  /** What it makes of its load before it tells. */
  readonly distort: ((load: ReportedLoad) => ReportedLoad) | undefined;
  /** Told which cached blocks a request used. */
  readonly usedBlocks: ((used: UsedBlocks, worker: SimulatedWorker) => void) | undefined;
}

/** Device times of a worker that was busy, for timelines. */
export interface WorkerUse {
  busyMs: number;
  promptTokenCount: number;
  decodeTokenCount: number;
  stepCount: number;
}

const TOKEN: Token = { tokenId: 1, topLogprobs: [] };
const CHANGES_MAX = 1 << 20;
/** Of all requests of a trace: they may share KV. */
export const TENANT = "01".repeat(16);
export const TENANT_SCOPE = new Uint8Array(16).fill(1);

/** A worker with its production scheduler on a device whose steps take what its profile says; two steps are in flight, as in the real one. */
export class SimulatedWorker {
  readonly facts: WorkerFacts;
  readonly options: SimulatedWorkerOptions;
  readonly link: Link;
  readonly use: WorkerUse = { busyMs: 0, promptTokenCount: 0, decodeTokenCount: 0, stepCount: 0 };
  scheduler: StepScheduler;
  epoch = 1;
  isAlive = true;
  readonly #events: EventQueue;
  readonly #cost: StepCostModel;
  readonly #listeners = new Map<SequenceId, SequenceListener>();
  #nextSequenceId = 1;
  #toldChange = 0;
  #cacheSequence = 0;
  /** What it knows of links; KV travels raw here. */
  #transfers = new TransferBook([]);
  #toldMeasurementCount = 0;
  #deviceFreeAt = 0;
  #prefillTokensPerSecond = 0;
  #decodeStepMs = 0;

  constructor(options: SimulatedWorkerOptions, events: EventQueue) {
    this.options = options;
    this.facts = options.facts;
    this.link = new Link(options.link);
    this.#events = events;
    this.#cost = new StepCostModel(options.profile.believed);
    this.scheduler = newScheduler(options);
  }

  /** Comes back under a new epoch and knows nothing of before. */
  restart(): void {
    this.epoch++;
    this.isAlive = true;
    this.scheduler = newScheduler(this.options);
    this.#listeners.clear();
    this.#toldChange = 0;
    this.#cacheSequence = 0;
    this.#transfers = new TransferBook([]);
    this.#toldMeasurementCount = 0;
    this.#deviceFreeAt = this.#events.now;
  }

  submit(spec: Omit<SequenceSpec, "sequenceId">, waitUntil: Instant, listener: SequenceListener): SequenceId {
    const sequenceId = this.#nextSequenceId++ as SequenceId;
    this.#listeners.set(sequenceId, listener);
    this.apply({ kind: "SequenceArrived", spec: { ...spec, sequenceId }, waitUntil });
    return sequenceId;
  }

  apply(event: SchedulerEvent): void {
    if (!this.isAlive) return;
    const effects = this.scheduler.apply(event, this.#events.now);
    for (const effect of effects) this.#perform(effect);
    this.#plan();
  }

  /** What its cache holds now that it has not told; in the order in which it came about. */
  cacheChanges(hidesRemovals: boolean): readonly HolderEvent[] {
    const { journal } = this.scheduler.pool;
    const changes: HolderEvent[] = [];
    while (this.#toldChange < journal.next) {
      const reading = journal.read(this.#toldChange, CHANGES_MAX);
      if (reading.kind === "gap") throw new Error("a simulated worker's journal is read after each step");
      this.#toldChange = reading.next;
      const { epoch } = this;
      const common = { epoch, medium: "device" as const };
      if (reading.removed.length > 0 && !hidesRemovals) {
        changes.push({ ...common, kind: "BlocksRemoved", sequence: ++this.#cacheSequence, hashes: reading.removed });
      }
      if (reading.stored.length > 0) {
        changes.push({ ...common, kind: "BlocksStored", sequence: ++this.#cacheSequence, hashes: reading.stored });
      }
    }
    return changes;
  }

  /** All that its cache holds, as of the last change that it told. */
  cacheSnapshot(): HolderEvent {
    const { epoch } = this;
    this.#toldChange = this.scheduler.pool.journal.next;
    const hashes = this.scheduler.pool.snapshot();
    const sequence = ++this.#cacheSequence;
    return { epoch, sequence, kind: "SnapshotPart", part: 0, isLast: true, medium: "device", hashes };
  }

  /** Raw KV is on its way to it, and all there at `at`. */
  receives({ transferAddress: source }: Pick<WorkerFacts, "transferAddress">, bytes: number, at: Instant): void {
    if (!this.options.measuresLinks || source === undefined || bytes === 0) return;
    const book = this.#transfers;
    const transferMs = msFromNanos(at - this.#events.now);
    const traffic = new Map([[0, { wireBytes: bytes, rawBytes: bytes, encodeMs: 0, decodeMs: 0 }]]);
    book.begin(source);
    this.#events.at(at, () => {
      book.observe(source, undefined, traffic, transferMs, this.#events.now);
      book.end(source);
    });
  }

  /** What it measured of links and has not told. */
  measuredLinks(): readonly MeasuredLink[] {
    const links = this.#transfers.measuredAfter(this.#toldMeasurementCount);
    this.#toldMeasurementCount = this.#transfers.measurementCount;
    return links;
  }

  load(): ReportedLoad {
    const load = this.scheduler.load();
    const stepCost = this.#cost.cost();
    const told: ReportedLoad = {
      freeBlockCount: load.availableBlockCount,
      runningCount: load.runningCount,
      waitingCount: load.waitingCount,
      queuedPromptTokenCount: load.queuedPromptTokenCount,
      contextTokenCount: load.contextTokenCount,
      prefillTokensPerSecond: this.#prefillTokensPerSecond,
      decodeStepMs: this.#decodeStepMs,
      ...(stepCost === undefined ? {} : { stepCost }),
      isDraining: false,
    };
    return this.options.distort?.(told) ?? told;
  }

  #perform(effect: SchedulerEffect): void {
    const listener = this.#listeners.get(effect.sequenceId);
    switch (effect.kind) {
      case "AnnounceAdmission":
        listener?.admitted(effect.blockIds, effect.cachedTokenCount, effect.sequenceId);
        break;
      case "RefuseSequence":
        this.#listeners.delete(effect.sequenceId);
        listener?.refused();
        break;
      case "OpenFetch":
        listener?.openFetch();
        break;
      case "DeliverToken":
        listener?.sampled(effect.end !== undefined);
        break;
      case "TellUsedBlocks": {
        const { requestId } = effect.scope;
        const prefillTokensPerSecond = this.#prefillTokensPerSecond;
        this.options.usedBlocks?.({ requestId, tenant: TENANT, hashes: effect.hashes, prefillTokensPerSecond }, this);
        break;
      }
      case "ForgetSequence":
        this.#listeners.delete(effect.sequenceId);
        break;
    }
  }

  #plan(): void {
    for (let plan = this.scheduler.plan(); plan !== undefined; plan = this.scheduler.plan()) this.#run(plan);
  }

  #run(plan: StepPlan): void {
    const work = workOfPlan(plan);
    const stepMs = plan.slices.length === 0 ? 0 : this.options.profile.stepMs(work) * this.options.slowdown;
    const start = Math.max(this.#deviceFreeAt, this.#events.now);
    const stepNanos = nanosFromMs(stepMs + this.options.stepOverheadMs);
    const end = start + stepNanos;
    this.#deviceFreeAt = start + Math.round(stepNanos / (this.options.profile.stageCount ?? 1));
    const { epoch } = this;
    this.#events.at(end as Instant, () => this.#complete(plan, work, stepMs, epoch));
  }

  #complete(plan: StepPlan, work: StepWork, stepMs: number, epoch: number): void {
    if (!this.isAlive || epoch !== this.epoch) return;
    const { slices, promptTokenCount, decodeTokenCount } = plan;
    this.use.busyMs += stepMs;
    this.use.stepCount++;
    this.use.promptTokenCount += promptTokenCount;
    this.use.decodeTokenCount += decodeTokenCount;
    if (stepMs > 0) this.#cost.observe(work, stepMs);
    if (promptTokenCount > 0) {
      this.#prefillTokensPerSecond = blend(this.#prefillTokensPerSecond, promptTokenCount / (stepMs / 1_000));
    } else if (decodeTokenCount > 0) this.#decodeStepMs = blend(this.#decodeStepMs, stepMs);

    const results: SliceResult[] = new Array(slices.length);
    for (let index = 0; index < slices.length; index++) {
      const { sequenceId, sample, startPosition, tokenCount } = slices[index]!;
      if (index >= decodeTokenCount) this.#listeners.get(sequenceId)?.computed(startPosition + tokenCount);
      results[index] = sample ? { sequenceId, outcome: "sampled", token: TOKEN } : { sequenceId, outcome: "computed" };
    }
    this.apply({ kind: "StepCompleted", stepId: plan.stepId, results });
  }
}

function newScheduler(options: SimulatedWorkerOptions): StepScheduler {
  const { facts, tokenBudget, sequenceCountMax, stepsInFlightMax } = options;
  const { blockCount, blockSize } = facts;
  const limits = { tokenBudget, sequenceCountMax, pinnedShareMax: 0.5, stepsInFlightMax };
  return new StepScheduler({ blockCount, blockSize, ...limits });
}

function blend(old: number, newest: number): number {
  return old === 0 ? newest : old + 0.2 * (newest - old);
}
