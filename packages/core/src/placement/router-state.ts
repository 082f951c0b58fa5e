import { AdmissionControl, type ModelShares } from "../admission/admission-control.ts";
import type { TenantShares } from "../admission/tenant-shares.ts";
import { assert } from "../assert.ts";
import { unreachable } from "../kvasir-error.ts";
import type { PrefixIndexOptions } from "../prefix-index/index.ts";
import type { Instant, Nanos } from "../time.ts";
import { Attachments } from "./attachments.ts";
import type { AttachedWorker, ClusterViewOptions } from "./cluster-view.ts";
import { GoodputPolicy } from "./goodput-policy.ts";
import { LinkBelief } from "./link-belief.ts";
import type { PlacementPolicy } from "./placement-policy.ts";
import type { PredictionOptions } from "./predict.ts";
import { PrefixOverlap } from "./prefix-overlap.ts";
import { incarnationOf, ReservationTable, type Reserved } from "./reservations.ts";
import type { RouterEffect, RouterEvent } from "./router-events.ts";
import type { AttachedStore } from "./store-facts.ts";

/** When a worker has enough to compute; a prompt waits here when both are exceeded on every worker. */
export interface WorkerQueueOptions {
  /** Prompts on it, with the one that it computes. 2 keeps it busy between two; larger: tenants wait for what others have there already. */
  readonly promptCount: number;
  /** Time of the prompts before a new one. Larger: the same; smaller: workers may idle between short prompts. */
  readonly queueMaxMs: number;
}

export const WORKER_QUEUE_DEFAULTS: WorkerQueueOptions = { promptCount: 2, queueMaxMs: 100 };

export interface RouterOptions {
  /** Requests that may wait. Larger: longer waits before a refusal; smaller: bursts are refused that would have fitted. */
  readonly queueMax: number;
  /** Longest wait for room. */
  readonly queueTimeout: Nanos;
  /** Longest wait for a capable worker while none is attached. Larger: callers wait for what may never come; smaller: a restart fails requests. */
  readonly noWorkerGrace: Nanos;
  /**
   * Wait for a prefill worker before a decode worker computes the prompt too; a request that has lost a worker does not wait. Larger: requests
   * wait longer for a pool that is gone; smaller: a restart of the last prefill worker burdens decode workers.
   */
  readonly localPrefillAfter: Nanos;
  /** Least time between two messages that say how the queue moved. */
  readonly positionInterval: Nanos;
  /** How much may wait on workers before requests wait here instead. Absent: whatever has room goes to a worker at once. */
  readonly workerQueue?: WorkerQueueOptions;
  readonly view: ClusterViewOptions;
  readonly prediction: PredictionOptions;
  /** Chooses among the workers. Default `GoodputPolicy`; the simulator compares others with it. */
  readonly policy?: PlacementPolicy;
  readonly prefixIndex: PrefixIndexOptions;
}

/**
 * Everything the router decides: which workers count, who waits, who is placed where, who is refused. A state machine without
 * clock or I/O; the shell feeds it events and carries out the effects in order.
 */
export class RouterState {
  readonly #attached: Attachments;
  readonly #overlap: PrefixOverlap;
  readonly #policy: PlacementPolicy;
  readonly #reservations = new ReservationTable();
  readonly #admission: AdmissionControl;
  readonly #reservedOf = (incarnation: string): Reserved => this.#reservations.of(incarnation);

  constructor(options: RouterOptions) {
    this.#overlap = new PrefixOverlap(options.prefixIndex);
    const links = new LinkBelief(options.prediction.kvBytesPerSecond);
    this.#attached = new Attachments(options.view, this.#overlap, links, this.#reservedOf);
    this.#policy = options.policy ?? new GoodputPolicy();
    this.#admission = new AdmissionControl(options, {
      view: this.#attached.view,
      openStores: () => this.#attached.openStores(),
      overlap: this.#overlap,
      links,
      policy: this.#policy,
      reservations: this.#reservations,
    });
  }

  get queuedCount(): number {
    return this.#admission.queuedCount;
  }

  /** Requests placed and not ended. */
  get placedCount(): number {
    return this.#reservations.requestCount;
  }

  /** Distinct blocks that workers have said they hold. */
  get cachedBlockCount(): number {
    return this.#overlap.blockCount;
  }

  /** Blocks that a worker has said it holds. */
  cachedBlockCountOf(workerId: string): number {
    return this.#overlap.blockCountOf(workerId);
  }

  /** Attached workers, by id. */
  workers(): readonly AttachedWorker[] {
    return this.#attached.workers();
  }

  /** Attached stores, by id. */
  stores(): readonly AttachedStore[] {
    return this.#attached.stores();
  }

  reserved(workerId: string, epoch: number): Reserved {
    return this.#reservedOf(incarnationOf(workerId, epoch));
  }

  /** What each tenant of a model was served. */
  sharesOf(model: string): TenantShares {
    return this.#admission.sharesOf(model);
  }

  /** What each tenant was served, for the router that leads next. */
  snapshotShares(): readonly ModelShares[] {
    return this.#admission.snapshotShares();
  }

  apply(event: RouterEvent, now: Instant): readonly RouterEffect[] {
    const effects: RouterEffect[] = [];
    switch (event.kind) {
      case "WorkerAttached":
      case "WorkerCacheChanged":
      case "StoreAttached":
      case "StoreReported":
        this.#attached.apply(event, now, effects);
        break;
      case "WorkerReported":
        this.#attached.apply(event, now, effects);
        this.#admission.placeWaiting(now, effects, true);
        break;
      case "WorkerLeft":
        this.#attached.apply(event, now, effects);
        this.#admission.placeWaiting(now, effects);
        break;
      case "RequestArrived":
        this.#admission.arrive(event.key, event.request, event.excludedWorkerIds ?? [], now, effects);
        break;
      case "RequestRetried":
        this.#admission.retry(event.key, event.excludedWorkerIds, event.keptPrefillWorkerId ?? "", now, effects);
        break;
      case "FirstTokenArrived":
        this.#reservations.endPrefill(event.key);
        this.#admission.firstToken(event.key);
        this.#policy.firstToken?.(event.key, now);
        this.#admission.placeWaiting(now, effects);
        break;
      case "RequestEnded":
        if (this.#admission.end(event.key, event.outcome, now)) this.#admission.placeWaiting(now, effects);
        break;
      case "SharesRestored":
        this.#admission.restoreShares(event.left, now);
        break;
      case "Ticked":
        this.#overlap.sweep();
        for (const workerId of this.#attached.advance(now)) effects.push({ kind: "ReportLostWorker", workerId });
        this.#admission.tick(now, effects);
        break;
      default:
        unreachable(event);
    }
    return effects;
  }

  checkInvariants(): void {
    this.#reservations.checkInvariants();
    this.#admission.checkInvariants();
    for (const { facts, incarnation } of this.#attached.workers()) {
      const { blockCount } = this.#reservedOf(incarnation);
      assert(
        blockCount <= facts.blockCount,
        `${blockCount} of ${facts.blockCount} blocks of ${facts.workerId} are promised`,
      );
    }
  }
}
