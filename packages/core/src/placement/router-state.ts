import { assert } from "../assert.ts";
import { unreachable } from "../kvasir-error.ts";
import type { PrefixIndexOptions } from "../prefix-index/index.ts";
import { addNanos, type Instant, msFromNanos, type Nanos, nanosBetween } from "../time.ts";
import { AdmissionQueue } from "./admission-queue.ts";
import { type Candidate, type Exclusion, preferPrefill } from "./choose-placement.ts";
import {
  type AttachedWorker,
  ClusterView,
  type ClusterViewOptions,
  type StreamId,
  type ViewOutcome,
} from "./cluster-view.ts";
import { describePlacement } from "./describe-placement.ts";
import { checkFit, type FitOutcome, surelyFits } from "./fit.ts";
import { GoodputPolicy } from "./goodput-policy.ts";
import type { PlacementPolicy, PolicyOutcome } from "./placement-policy.ts";
import type { PredictionOptions } from "./predict.ts";
import { PrefixOverlap } from "./prefix-overlap.ts";
import { incarnationOf, type RequestKey, ReservationTable, type Reserved, type Share } from "./reservations.ts";
import type { RouterEffect, RouterEvent } from "./router-events.ts";
import { decodeBlockCount, prefillBlockCount, type RequestShape } from "./worker-facts.ts";

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
  readonly view: ClusterViewOptions;
  readonly prediction: PredictionOptions;
  /** Chooses among the workers. Default `GoodputPolicy`; the simulator compares others with it. */
  readonly policy?: PlacementPolicy;
  readonly prefixIndex: PrefixIndexOptions;
}

interface LiveRequest {
  readonly key: RequestKey;
  readonly request: RequestShape;
  /** Workers that failed it, and when that was said. */
  readonly excludedAt: Map<string, Instant>;
  readonly arrivedAt: Instant;
  isPlaced: boolean;
  wasPlaced: boolean;
  /** Taken before others, where it is a candidate; empty: none. */
  keptPrefillWorkerId: string;
  waitingSince: Instant;
  /** Since when no capable worker is attached; undefined while one is. */
  noWorkerSince: Instant | undefined;
  /** Version of the cluster for which `noWorkerSince` was found. */
  checkedVersion: number;
  lastPosition: number;
  /** Why it still waits. */
  blockedBy: string;
}

const RETRY_AFTER_MIN_MS = 100;
const RETRY_AFTER_MAX_MS = 30_000;
/** Assumed time between two placements before one was seen, and the most that is believed of a quiet time. */
const PLACEMENT_INTERVAL_MAX_MS = 1_000;
/** Weight of the newest interval in the mean. */
const PLACEMENT_INTERVAL_GAIN = 0.2;
/** Failed workers remembered per request; a message may name more, honest ones never do. */
const EXCLUDED_MAX = 64;

/**
 * Everything the router decides: which workers count, who waits, who is placed where, who is refused. A state machine without
 * clock or I/O; the shell feeds it events and carries out the effects in order.
 */
export class RouterState {
  readonly #options: RouterOptions;
  readonly #view: ClusterView;
  readonly #overlap: PrefixOverlap;
  readonly #policy: PlacementPolicy;
  readonly #reservations = new ReservationTable();
  readonly #queue = new AdmissionQueue();
  readonly #live = new Map<RequestKey, LiveRequest>();
  readonly #reservedOf = (incarnation: string): Reserved => this.#reservations.of(incarnation);
  #placementIntervalMs = PLACEMENT_INTERVAL_MAX_MS;
  #lastPlacementAt: Instant | undefined;
  #positionsSentAt = 0 as Instant;

  constructor(options: RouterOptions) {
    this.#options = options;
    this.#view = new ClusterView(options.view);
    this.#overlap = new PrefixOverlap(options.prefixIndex);
    this.#policy = options.policy ?? new GoodputPolicy();
  }

  get queuedCount(): number {
    return this.#queue.size;
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
    return [...this.#view.workers()].sort((a, b) => (a.facts.workerId < b.facts.workerId ? -1 : 1));
  }

  reserved(workerId: string, epoch: number): Reserved {
    return this.#reservedOf(incarnationOf(workerId, epoch));
  }

  apply(event: RouterEvent, now: Instant): readonly RouterEffect[] {
    const effects: RouterEffect[] = [];
    switch (event.kind) {
      case "WorkerAttached": {
        const outcome = this.#view.attach(event.streamId, event.facts, event.epoch, event.sequence, now);
        this.#answerWorker(event.streamId, event.sequence, outcome, effects);
        break;
      }
      case "WorkerReported": {
        const { streamId, epoch, sequence } = event;
        const outcome = this.#view.report(streamId, epoch, sequence, event.load, this.#reservedOf, now);
        this.#answerWorker(streamId, sequence, outcome, effects);
        this.#placeWaiting(now, effects);
        break;
      }
      case "WorkerCacheChanged": {
        const { streamId, epoch, sequence, change } = event;
        const workerId = this.#view.workerIdOf(streamId);
        const outcome = this.#view.follow(streamId, epoch, sequence, now);
        this.#answerWorker(streamId, sequence, outcome, effects);
        if (outcome.kind === "refused" || workerId === undefined) break;
        const taken = this.#overlap.apply(workerId, change);
        if (taken.kind === "needs_snapshot" && taken.isNew) effects.push({ kind: "WantCacheSnapshot", streamId });
        break;
      }
      case "WorkerLeft":
        this.#leave(event.streamId, now);
        this.#placeWaiting(now, effects);
        break;
      case "RequestArrived":
        this.#arrive(event.key, event.request, event.excludedWorkerIds ?? [], now, effects);
        break;
      case "RequestRetried":
        this.#retry(event.key, event.excludedWorkerIds, event.keptPrefillWorkerId ?? "", now, effects);
        break;
      case "FirstTokenArrived":
        this.#reservations.endPrefill(event.key);
        this.#policy.firstToken?.(event.key, now);
        this.#placeWaiting(now, effects);
        break;
      case "RequestEnded":
        if (this.#forget(event.key, now)) this.#placeWaiting(now, effects);
        break;
      case "Ticked":
        this.#tick(now, effects);
        break;
      default:
        unreachable(event);
    }
    return effects;
  }

  #leave(streamId: StreamId, now: Instant): void {
    const workerId = this.#view.leave(streamId, now);
    if (workerId !== undefined) this.#overlap.workerLeft(workerId);
  }

  #answerWorker(streamId: number, sequence: number, outcome: ViewOutcome, effects: RouterEffect[]): void {
    if (outcome.kind === "refused") {
      if (outcome.lostWorkerId !== undefined) this.#overlap.workerLeft(outcome.lostWorkerId);
      effects.push({ kind: "RefuseWorker", streamId, message: outcome.message });
      return;
    }
    if (outcome.supersededStreamId !== undefined) {
      const message = "a newer stream of this worker has taken over";
      effects.push({ kind: "RefuseWorker", streamId: outcome.supersededStreamId, message });
    }
    effects.push({ kind: "AcknowledgeWorker", streamId, sequence });
  }

  #arrive(
    key: RequestKey,
    request: RequestShape,
    excludedWorkerIds: readonly string[],
    now: Instant,
    effects: RouterEffect[],
  ): void {
    assert(!this.#live.has(key), `request ${key} arrived twice`);
    const fit = this.#checkFit(request);
    if (fit.kind === "never") {
      const { message, field } = fit;
      effects.push({ kind: "RejectRequest", key, reason: "invalid_request", message, retryAfterMs: 0, field });
      return;
    }
    const live: LiveRequest = {
      key,
      request,
      excludedAt: new Map(),
      arrivedAt: now,
      isPlaced: false,
      wasPlaced: false,
      keptPrefillWorkerId: "",
      waitingSince: now,
      noWorkerSince: undefined,
      checkedVersion: -1,
      lastPosition: -1,
      blockedBy: "",
    };
    exclude(live, excludedWorkerIds, now);
    this.#live.set(key, live);
    this.#admit(live, this.#options.queueMax, now, effects);
  }

  #checkFit(request: RequestShape): FitOutcome {
    if (surelyFits(request, this.#view.workers())) return { kind: "possible" };
    const known = [...this.#view.workers()].map((worker) => worker.facts);
    return checkFit(request, [...known, ...this.#view.departed()]);
  }

  #retry(
    key: RequestKey,
    excludedWorkerIds: readonly string[],
    keptPrefillWorkerId: string,
    now: Instant,
    effects: RouterEffect[],
  ): void {
    const live = this.#live.get(key);
    if (live === undefined) return; // It was refused while its message was on the way.
    exclude(live, excludedWorkerIds, now);
    if (!live.isPlaced) return;
    this.#release(key, now);
    live.isPlaced = false;
    live.keptPrefillWorkerId = keptPrefillWorkerId;
    live.waitingSince = now;
    live.noWorkerSince = undefined;
    live.checkedVersion = -1;
    live.lastPosition = -1;
    // It was admitted once: a full queue is no reason to drop it in the middle of its answer.
    this.#admit(live, Number.POSITIVE_INFINITY, now, effects);
    this.#placeWaiting(now, effects);
  }

  /** Queues a request and places at once what can be placed. */
  #admit(live: LiveRequest, queueMax: number, now: Instant, effects: RouterEffect[]): void {
    const { key, request } = live;
    if (this.#queue.size >= queueMax) {
      // A place at the end of a full queue is refused, unless it would not wait at all.
      const isNext = this.#queue.laneSize(request.model) === 0;
      const outcome = isNext ? this.#choose(live, now) : undefined;
      if (outcome?.kind === "placed") {
        this.#place(live, outcome.candidates, now, effects);
        return;
      }
      this.#live.delete(key);
      const message = `${this.#queue.size} requests wait already, the most that may`;
      effects.push(this.#rejection(key, "overloaded", message));
      return;
    }
    this.#queue.add(request.model, key);
    this.#placeLane(request.model, now, effects);
    if (live.isPlaced) return;
    live.lastPosition = this.#queue.position(request.model, key);
    effects.push({ kind: "SendQueued", key, position: live.lastPosition });
  }

  #placeWaiting(now: Instant, effects: RouterEffect[]): void {
    if (this.#queue.size === 0) return;
    for (const model of this.#queue.models()) this.#placeLane(model, now, effects);
  }

  /** Places a model's requests in their order, up to the first that must wait for room. */
  #placeLane(model: string, now: Instant, effects: RouterEffect[]): void {
    for (const key of this.#queue.lane(model)) {
      const live = this.#live.get(key);
      assert(live !== undefined, `request ${key} waits and does not live`);
      const hasExclusions = live.excludedAt.size > 0;
      const isKnown = live.noWorkerSince !== undefined && live.checkedVersion === this.#view.version;
      if (isKnown && !hasExclusions && !this.#mayPrefillLocally(live, now)) continue;
      const outcome = this.#choose(live, now);
      switch (outcome.kind) {
        case "placed":
          this.#queue.remove(model, key);
          this.#place(live, outcome.candidates, now, effects);
          break;
        case "full":
          live.noWorkerSince = undefined;
          live.blockedBy = outcome.message;
          // Whoever avoids a worker must not keep others from it.
          if (hasExclusions) break;
          return;
        case "late":
          effects.push(this.#rejection(key, "overloaded", outcome.message, outcome.retryAfterMs));
          this.#forget(key, now);
          break;
        case "no_worker":
          live.noWorkerSince ??= now;
          live.checkedVersion = this.#view.version;
          live.blockedBy = outcome.message;
          break;
      }
    }
  }

  #choose(live: LiveRequest, now: Instant): PolicyOutcome {
    const outcome = this.#policy.choose({
      workers: this.#view.workers(),
      request: live.request,
      waitedMs: msFromNanos(nanosBetween(live.arrivedAt, now)),
      reservedOf: this.#reservedOf,
      exclusionOf: (worker) => exclusionOf(worker, live.excludedAt),
      options: {
        ...this.#options.prediction,
        mayPrefillLocally: this.#mayPrefillLocally(live, now),
        cachedTokensOf: this.#overlap.of(live.request),
      },
      now,
    });
    // An answer that has begun goes on, however late.
    if (outcome.kind === "late" && live.wasPlaced) {
      return this.#choose({ ...live, request: { ...live.request, objectives: undefined } }, now);
    }
    return outcome.kind === "placed" ? preferPrefill(outcome, live.keptPrefillWorkerId) : outcome;
  }

  #mayPrefillLocally({ excludedAt, noWorkerSince }: LiveRequest, now: Instant): boolean {
    if (excludedAt.size > 0) return true;
    return noWorkerSince !== undefined && now >= addNanos(noWorkerSince, this.#options.localPrefillAfter);
  }

  #place(
    live: LiveRequest,
    candidates: readonly [Candidate, ...Candidate[]],
    now: Instant,
    effects: RouterEffect[],
  ): void {
    const [best] = candidates;
    this.#reservations.hold(live.key, sharesOf(best, live.request));
    this.#policy.placed?.(live.key, best, live.request, now);
    live.isPlaced = true;
    live.wasPlaced = true;
    if (this.#lastPlacementAt !== undefined) {
      const sinceMs = Math.min(msFromNanos(nanosBetween(this.#lastPlacementAt, now)), PLACEMENT_INTERVAL_MAX_MS);
      this.#placementIntervalMs += PLACEMENT_INTERVAL_GAIN * (sinceMs - this.#placementIntervalMs);
    }
    this.#lastPlacementAt = now;
    const waitedMs = msFromNanos(nanosBetween(live.waitingSince, now));
    const decision = {
      candidates,
      promptTokenCount: live.request.promptTokenCount,
      waitedMs,
      predictedTtftMs: waitedMs + best.ttftMs,
      predictedTbtMs: best.tbtMs,
      reason: describePlacement(candidates, live.request, waitedMs),
    };
    effects.push({ kind: "SendPlacement", key: live.key, decision });
  }

  #tick(now: Instant, effects: RouterEffect[]): void {
    this.#overlap.sweep();
    for (const workerId of this.#view.advance(now)) effects.push({ kind: "ReportLostWorker", workerId });
    if (this.#queue.size === 0) return;
    this.#placeWaiting(now, effects);
    const { queueTimeout, noWorkerGrace, positionInterval } = this.#options;
    for (const model of this.#queue.models()) {
      for (const key of this.#queue.lane(model)) {
        const live = this.#live.get(key);
        assert(live !== undefined, `request ${key} waits and does not live`);
        const { noWorkerSince, waitingSince, blockedBy } = live;
        const waitedMs = Math.round(msFromNanos(nanosBetween(waitingSince, now)));
        if (noWorkerSince !== undefined && now >= addNanos(noWorkerSince, noWorkerGrace)) {
          effects.push(this.#rejection(key, "unavailable", `${blockedBy}; waited ${waitedMs} ms for one`));
          this.#forget(key, now);
        } else if (now >= addNanos(waitingSince, queueTimeout)) {
          effects.push(
            this.#rejection(key, "overloaded", `waited ${waitedMs} ms for room; ${blockedBy || "others are first"}`),
          );
          this.#forget(key, now);
        }
      }
    }
    // A request that was refused may have stood before one that fits.
    this.#placeWaiting(now, effects);
    if (now < addNanos(this.#positionsSentAt, positionInterval)) return;
    this.#positionsSentAt = now;
    this.#sendPositions(effects);
  }

  #sendPositions(effects: RouterEffect[]): void {
    for (const model of this.#queue.models()) {
      this.#queue.lane(model).forEach((key, position) => {
        const live = this.#live.get(key);
        if (live === undefined || live.lastPosition === position) return;
        live.lastPosition = position;
        effects.push({ kind: "SendQueued", key, position });
      });
    }
  }

  /** `retryAfterMs`: when the queue as it is will have been placed, at the pace of late. */
  #rejection(
    key: RequestKey,
    reason: "overloaded" | "unavailable",
    message: string,
    atLeastMs = RETRY_AFTER_MIN_MS,
  ): RouterEffect {
    const drainMs = Math.ceil(this.#queue.size * this.#placementIntervalMs);
    const retryAfterMs =
      reason === "unavailable"
        ? Math.round(msFromNanos(this.#options.noWorkerGrace))
        : Math.min(Math.max(drainMs, atLeastMs), RETRY_AFTER_MAX_MS);
    return { kind: "RejectRequest", key, reason, message, retryAfterMs, field: "" };
  }

  #release(key: RequestKey, now: Instant): void {
    this.#reservations.release(key);
    this.#policy.ended?.(key, now);
  }

  #forget(key: RequestKey, now: Instant): boolean {
    const live = this.#live.get(key);
    if (live === undefined) return false;
    this.#live.delete(key);
    if (live.isPlaced) this.#release(key, now);
    else this.#queue.remove(live.request.model, key);
    return true;
  }

  checkInvariants(): void {
    this.#reservations.checkInvariants();
    this.#queue.checkInvariants();
    let placed = 0;
    for (const live of this.#live.values()) {
      assert(
        live.isPlaced === this.#reservations.has(live.key),
        `request ${live.key} holds what its state does not say`,
      );
      if (live.isPlaced) placed++;
    }
    assert(placed === this.#reservations.requestCount, "a reservation outlived its request");
    assert(this.#live.size - placed === this.#queue.size, "a live request neither waits nor is placed");
    for (const { facts, incarnation } of this.#view.workers()) {
      const { blockCount } = this.#reservedOf(incarnation);
      assert(
        blockCount <= facts.blockCount,
        `${blockCount} of ${facts.blockCount} blocks of ${facts.workerId} are promised`,
      );
    }
  }
}

function exclude(live: LiveRequest, workerIds: readonly string[], now: Instant): void {
  for (const workerId of workerIds) {
    if (live.excludedAt.has(workerId) || live.excludedAt.size < EXCLUDED_MAX) live.excludedAt.set(workerId, now);
  }
}

/**
 * A worker that failed a request is avoided for it. Before it has reported again it is not used at all: its stream may not have
 * noticed yet that it is dead.
 */
function exclusionOf(worker: AttachedWorker, excludedAt: ReadonlyMap<string, Instant>): Exclusion {
  const since = excludedAt.get(worker.facts.workerId);
  if (since === undefined) return "none";
  return worker.reportedAt > since ? "avoid" : "forbid";
}

function sharesOf({ mode, prefill, decode, uncachedTokenCount }: Candidate, request: RequestShape): readonly Share[] {
  const decodeShare: Share = {
    incarnation: decode.incarnation,
    blockCount: decodeBlockCount(request, decode.facts.blockSize),
    promptTokenCount: mode === "aggregated" ? uncachedTokenCount : 0,
    sequenceCount: 1,
  };
  if (prefill === undefined) return [decodeShare];
  const prefillShare: Share = {
    incarnation: prefill.incarnation,
    blockCount: prefillBlockCount(request, prefill.facts.blockSize),
    promptTokenCount: uncachedTokenCount,
    sequenceCount: 0,
  };
  return [decodeShare, prefillShare];
}
