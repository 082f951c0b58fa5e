import { assert } from "../assert.ts";
import { OutputLengthPredictor, type PredictedLength } from "../cost/index.ts";
import { type Candidate, preferPrefill } from "../placement/choose-placement.ts";
import type { ClusterView } from "../placement/cluster-view.ts";
import { describePlacement } from "../placement/describe-placement.ts";
import { checkFit, type FitOutcome, surelyFits } from "../placement/fit.ts";
import type { LinkBelief } from "../placement/link-belief.ts";
import type { PlacementPolicy, PolicyOutcome, RequestOutcome } from "../placement/placement-policy.ts";
import type { PrefixOverlap } from "../placement/prefix-overlap.ts";
import { type RequestKey, type ReservationTable, type Reserved, sharesOf } from "../placement/reservations.ts";
import type { RefusalCode, RouterEffect } from "../placement/router-events.ts";
import type { RouterOptions } from "../placement/router-state.ts";
import type { AttachedStore } from "../placement/store-facts.ts";
import type { RequestShape } from "../placement/worker-facts.ts";
import { WorkerTrust } from "../placement/worker-trust.ts";
import { addNanos, type Instant, msFromNanos, nanosBetween, nanosFromMs } from "../time.ts";
import { AdmissionQueue } from "./admission-queue.ts";
import { DrainRate } from "./drain-rate.ts";
import {
  costTokens,
  exclude,
  exclusionOf,
  type LiveRequest,
  newLiveRequest,
  waitAnew,
  waitingOf,
} from "./live-request.ts";
import { SessionWorkers } from "./session-workers.ts";
import { OUTPUT_TOKEN_PRICE, type SharesSnapshot, type TenantShares } from "./tenant-shares.ts";

const RETRY_AFTER_MIN_MS = 100;
const RETRY_AFTER_MAX_MS = 30_000;
/** Of one request, until the pace is known. */
const SERVICE_GUESS_MS = 1_000;

/** Gateways ask the new leader within this. Larger: a tenant that left with the old one holds the floor down for longer. */
const RETURN_WITHIN = nanosFromMs(5_000);

export interface ModelShares {
  readonly model: string;
  readonly shares: SharesSnapshot;
}

/** What admission stands between. */
export interface AdmissionWorld {
  readonly view: ClusterView;
  readonly overlap: PrefixOverlap;
  readonly links: LinkBelief;
  /** Stores that lend. */
  readonly openStores: () => readonly AttachedStore[];
  readonly policy: PlacementPolicy;
  readonly reservations: ReservationTable;
}

/**
 * Who is placed, who waits, and who is refused. A request is placed at once while workers have room for it and do not queue prompts of their own; else it
 * waits here, where tenants, classes and deadlines decide who is next, and not on a worker, where arrival would. What cannot meet its targets, as
 * predicted from what stands before it, is refused when it comes, or served on a best effort if it allows that.
 */
export class AdmissionControl {
  readonly #options: RouterOptions;
  readonly #world: AdmissionWorld;
  readonly #queue = new AdmissionQueue();
  readonly #live = new Map<RequestKey, LiveRequest>();
  readonly #lengths = new OutputLengthPredictor();
  readonly #drain = new Map<string, DrainRate>();
  readonly #sessions = new SessionWorkers();
  readonly #trust = new WorkerTrust();
  /** Models whose next request waits for workers to compute what they have; with the cluster's version at that time. */
  readonly #held = new Map<string, number>();
  readonly #reservedOf: (incarnation: string) => Reserved;
  #positionsSentAt = 0 as Instant;
  /** By when requests that waited at the router that led before are back. */
  #returnsUntil: Instant | undefined;

  constructor(options: RouterOptions, world: AdmissionWorld) {
    this.#options = options;
    this.#world = world;
    this.#reservedOf = (incarnation) => world.reservations.of(incarnation);
  }

  get queuedCount(): number {
    return this.#queue.size;
  }

  /** Virtual counters of a model's tenants. */
  sharesOf(model: string): TenantShares {
    return this.#queue.sharesOf(model);
  }

  /** What to leave to the router that leads next. */
  snapshotShares(): readonly ModelShares[] {
    return this.#queue.knownModels().map((model) => ({ model, shares: this.#queue.sharesOf(model).snapshot() }));
  }

  /** What the router left that led before. */
  restoreShares(left: readonly ModelShares[], now: Instant): void {
    for (const { model, shares } of left) this.#queue.sharesOf(model).restore(shares);
    this.#returnsUntil = addNanos(now, RETURN_WITHIN);
  }

  arrive(
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
      const refusal = { reason: "invalid_request", code: "invalid_request", message, retryAfterMs: 0, field } as const;
      effects.push({ kind: "RejectRequest", key, ...refusal });
      return;
    }
    const live = newLiveRequest(key, request, now);
    exclude(live, excludedWorkerIds, now);
    this.#live.set(key, live);
    this.#admit(live, now, effects);
  }

  retry(
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
    for (const { facts, incarnation } of live.placedOn) {
      if (excludedWorkerIds.includes(facts.workerId)) this.#trust.failed(incarnation, key, now);
    }
    this.#release(live, now);
    waitAnew(live, now);
    live.keptPrefillWorkerId = keptPrefillWorkerId;
    this.#admit(live, now, effects);
    this.placeWaiting(now, effects);
  }

  /** Its prompt is computed, and its workers answer. */
  firstToken(key: RequestKey): void {
    for (const { incarnation } of this.#live.get(key)?.placedOn ?? []) this.#trust.succeeded(incarnation);
  }

  /** Its end, however it came. False when nothing was known of it. */
  end(key: RequestKey, outcome: RequestOutcome | undefined, now: Instant): boolean {
    const live = this.#live.get(key);
    if (live === undefined) return false;
    if (outcome !== undefined && live.wasPlaced) this.#learn(live, outcome);
    this.#forget(live, now, outcome);
    return true;
  }

  /** Places what can be placed by now. `isReport`: only a worker's report came, which frees no worker of what it computes. */
  placeWaiting(now: Instant, effects: RouterEffect[], isReport = false): void {
    if (this.#queue.size === 0) return;
    for (const model of this.#queue.models()) {
      if (isReport && this.#held.get(model) === this.#world.view.version) continue;
      this.#placeLane(model, now, effects);
    }
  }

  /** Refuses who waited too long, and says how the queue moved. */
  tick(now: Instant, effects: RouterEffect[]): void {
    if (this.#returnsUntil !== undefined && now >= this.#returnsUntil) {
      this.#returnsUntil = undefined;
      for (const model of this.#queue.knownModels()) this.#queue.sharesOf(model).settle();
    }
    if (this.#queue.size === 0) return;
    this.placeWaiting(now, effects);
    for (const model of this.#queue.models()) {
      for (const key of this.#queue.order(model)) this.#checkWait(this.#known(key), now, effects);
    }
    // A request that was refused may have stood before one that fits.
    this.placeWaiting(now, effects);
    if (now < addNanos(this.#positionsSentAt, this.#options.positionInterval)) return;
    this.#positionsSentAt = now;
    for (const model of this.#queue.models()) this.#sendPositions(model, effects);
  }

  #checkFit(request: RequestShape): FitOutcome {
    const { view } = this.#world;
    if (surelyFits(request, view.workers())) return { kind: "possible" };
    const known = [...view.workers()].map((worker) => worker.facts);
    return checkFit(request, [...known, ...view.departed()]);
  }

  /** Queues a request and places at once what can be placed; refuses somebody when too many are left. */
  #admit(live: LiveRequest, now: Instant, effects: RouterEffect[]): void {
    const { key, request } = live;
    this.#enqueue(live, now);
    this.#placeLane(request.model, now, effects);
    if (!this.#queue.has(key)) return;
    // It was admitted once: a full queue is no reason to drop it in the middle of its answer.
    if (this.#queue.size > this.#options.queueMax && !live.wasPlaced) {
      const loser = this.#known(this.#queue.whoGivesWay(key));
      const others = this.#queue.size - 1;
      const message =
        loser === live
          ? `${others} requests wait already, the most that may`
          : `${others} others wait, the most that may, and of this tenant the most`;
      this.#refuse(loser, "queue_full", message, now, effects);
      if (loser === live) return;
    }
    if (this.#refuseEarly(live, now, effects)) return;
    live.lastPosition = this.#queue.ahead(key).count;
    effects.push({ kind: "SendQueued", key, position: live.lastPosition });
  }

  #enqueue(live: LiveRequest, now: Instant): void {
    this.#queue.add(live.request.model, waitingOf(live, this.#lengthOf(live.request).meanTokens));
    this.#drainOf(live.request.model).setWaiting(true, now);
  }

  #dequeue({ key, request }: LiveRequest, now: Instant): void {
    this.#queue.remove(key);
    if (this.#queue.backlogOf(request.model).count === 0) this.#drainOf(request.model).setWaiting(false, now);
  }

  /** Predicts a wait behind others from what they cost and how fast the queue is served. True when the request is gone. */
  #refuseEarly(live: LiveRequest, now: Instant, effects: RouterEffect[]): boolean {
    const { key, request } = live;
    if (request.objectives === undefined || live.isBestEffort || live.wasPlaced) return false;
    const aheadMs = this.#drainOf(request.model).msFor(this.#queue.ahead(key).costTokens, now);
    if (aheadMs === undefined || aheadMs === 0) return false;
    const outcome = this.#choose(live, now, aheadMs);
    if (outcome.kind !== "late") return false;
    this.#late(live, outcome.message, outcome.retryAfterMs, now, effects);
    if (this.#live.has(key)) this.#placeLane(request.model, now, effects);
    return !this.#queue.has(key);
  }

  /** Places a model's requests in their order, up to the first that must wait for room. */
  #placeLane(model: string, now: Instant, effects: RouterEffect[]): void {
    this.#held.delete(model);
    const turns = this.#queue.turns(model);
    for (let key = turns.next(); key !== undefined; key = turns.next()) {
      const live = this.#known(key);
      const hasExclusions = live.excludedAt.size > 0;
      const isKnown = live.noWorkerSince !== undefined && live.checkedVersion === this.#world.view.version;
      if (isKnown && !hasExclusions && !this.#mayPrefillLocally(live, now)) {
        turns.pass();
        continue;
      }
      const outcome = this.#choose(live, now, 0);
      switch (outcome.kind) {
        case "placed":
          live.noWorkerSince = undefined;
          if (live.wasPlaced || !this.#isHeld(outcome.candidates)) {
            this.#place(live, outcome.candidates, now, effects);
            break;
          }
          live.blockedBy = "every worker has prompts waiting";
          this.#held.set(model, this.#world.view.version);
          return;
        case "full":
          live.noWorkerSince = undefined;
          live.blockedBy = outcome.message;
          // Whoever avoids a worker must not keep others from it.
          if (!hasExclusions) return;
          turns.pass();
          break;
        case "late":
          this.#late(live, outcome.message, outcome.retryAfterMs, now, effects);
          break;
        case "no_worker":
          live.noWorkerSince ??= now;
          live.checkedVersion = this.#world.view.version;
          live.blockedBy = outcome.message;
          turns.pass();
          break;
      }
    }
  }

  /**
   * Whether every worker that could compute the prompt has others waiting behind the one that it computes. It would wait there too, in the order
   * of arrival; here tenants and deadlines count. A worker never idles for it: one prompt more than it computes is always there.
   */
  #isHeld(candidates: readonly Candidate[]): boolean {
    const { workerQueue } = this.#options;
    if (workerQueue === undefined) return false;
    return candidates.every(({ prefill, decode, ttft }) => {
      const { incarnation } = prefill ?? decode;
      return (
        ttft.queueMs > workerQueue.queueMaxMs && this.#reservedOf(incarnation).promptCount >= workerQueue.promptCount
      );
    });
  }

  #choose(live: LiveRequest, now: Instant, aheadMs: number): PolicyOutcome {
    const { view, overlap, links, policy, openStores } = this.#world;
    const { objectives } = live.request;
    // An answer that has begun goes on, however late.
    const mayBeLate = live.isBestEffort || live.wasPlaced;
    const request =
      objectives === undefined ? live.request : { ...live.request, objectives: { ...objectives, mayBeLate } };
    const outcome = policy.choose({
      workers: view.workers(),
      request,
      waitedMs: msFromNanos(nanosBetween(live.arrivedAt, now)) + aheadMs,
      answer: this.#lengthOf(request),
      reservedOf: this.#reservedOf,
      exclusionOf: (worker) => exclusionOf(worker, live.excludedAt, this.#trust.isAvoided(worker.incarnation, now)),
      options: {
        ...this.#options.prediction,
        mayPrefillLocally: this.#mayPrefillLocally(live, now),
        cachedTokensOf: overlap.of(request),
        storedPrefixesOf: overlap.storedOf(request, openStores()),
        kvRates: links.ratesFor(request.kvAccuracy ?? "exact", now),
      },
      now,
    });
    if (outcome.kind !== "placed") return outcome;
    if (live.keptPrefillWorkerId !== "") return preferPrefill(outcome, live.keptPrefillWorkerId);
    return this.#sessions.prefer(outcome, request);
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
    const { key, request, tenant } = live;
    const [best] = candidates;
    const { reservations, policy } = this.#world;
    const { meanTokens } = this.#lengthOf(request);
    reservations.hold(key, sharesOf(best, request));
    policy.placed?.(key, best, request, now);
    this.#useLinks(best, now);
    this.#sessions.placed(best, request);
    if (!live.wasPlaced) {
      const cost = costTokens(request, best.uncachedTokenCount, meanTokens);
      const shares = this.#queue.sharesOf(request.model);
      shares.charge(tenant, cost);
      shares.begin(tenant);
      live.chargedOutputTokens = meanTokens * (request.choiceCount ?? 1);
      this.#drainOf(request.model).served(cost, now);
    }
    this.#dequeue(live, now);
    live.isPlaced = true;
    live.wasPlaced = true;
    live.placedOn = best.prefill === undefined ? [best.decode] : [best.prefill, best.decode];
    const waitedMs = msFromNanos(nanosBetween(live.waitingSince, now));
    const decision = {
      candidates,
      promptTokenCount: request.promptTokenCount,
      waitedMs,
      predictedTtftMs: waitedMs + best.ttftMs,
      predictedTbtMs: best.tbtMs,
      predictedOutputTokens: meanTokens,
      serviceClass: live.serviceClass,
      isBestEffort: live.isBestEffort,
      reason: describePlacement(candidates, request, waitedMs),
    };
    effects.push({ kind: "SendPlacement", key, decision });
  }

  /** What a placement sends over links; a fetch that takes longer than computing ends by then. */
  #useLinks({ prefill, decode, handOver, fetch, ttft }: Candidate, now: Instant): void {
    const { links } = this.#world;
    if (prefill && handOver) {
      const { linkMs } = handOver;
      links.placed(decode.facts, prefill.facts, { startsInMs: ttft.queueMs, linkMs }, now);
    }
    if (fetch) {
      const linkMs = Math.min(fetch.linkMs, fetch.computeMs);
      links.placed((prefill ?? decode).facts, fetch.holder.facts, { startsInMs: 0, linkMs }, now);
    }
  }

  /** No placement meets its targets: it goes on as best effort where it may, and is refused where not. */
  #late(live: LiveRequest, message: string, retryAfterMs: number, now: Instant, effects: RouterEffect[]): void {
    if (live.request.objectives?.mayBeLate !== true) {
      this.#refuse(live, "slo_unattainable", message, now, effects, retryAfterMs);
      return;
    }
    this.#dequeue(live, now);
    live.isBestEffort = true;
    live.serviceClass = "flex";
    this.#enqueue(live, now);
  }

  #checkWait(live: LiveRequest, now: Instant, effects: RouterEffect[]): void {
    const { noWorkerGrace, queueTimeout } = this.#options;
    const { noWorkerSince, waitingSince, arrivedAt, blockedBy, request, isBestEffort, wasPlaced } = live;
    const waitedMs = Math.round(msFromNanos(nanosBetween(waitingSince, now)));
    const ttftMs = isBestEffort || wasPlaced ? undefined : request.objectives?.ttftMs;
    const sinceArrivalMs = msFromNanos(nanosBetween(arrivedAt, now));
    if (noWorkerSince !== undefined && now >= addNanos(noWorkerSince, noWorkerGrace)) {
      this.#refuse(live, "no_worker", `${blockedBy}; waited ${waitedMs} ms for one`, now, effects);
    } else if (now >= addNanos(waitingSince, queueTimeout)) {
      const message = `waited ${waitedMs} ms for room; ${blockedBy || "others are first"}`;
      this.#refuse(live, "queue_timeout", message, now, effects);
    } else if (ttftMs !== undefined && sinceArrivalMs >= ttftMs) {
      const message = `waited ${waitedMs} ms, as long as its first token may take (${Math.round(ttftMs)} ms); ${blockedBy || "others are first"}`;
      this.#late(live, message, RETRY_AFTER_MIN_MS, now, effects);
    }
  }

  #sendPositions(model: string, effects: RouterEffect[]): void {
    this.#queue.order(model).forEach((key, position) => {
      const live = this.#known(key);
      if (live.lastPosition === position) return;
      live.lastPosition = position;
      effects.push({ kind: "SendQueued", key, position });
    });
  }

  /** Retry-After: when what waits now will have been placed, at the pace of late; without a worker, its grace. */
  #refuse(
    live: LiveRequest,
    code: RefusalCode,
    message: string,
    now: Instant,
    effects: RouterEffect[],
    atLeastMs = RETRY_AFTER_MIN_MS,
  ): void {
    const { key, request } = live;
    const ahead = this.#queue.ahead(key);
    this.#forget(live, now);
    // Who could not meet its targets may come back when those before it are served; who waited in vain comes after all others.
    const before = code === "slo_unattainable" ? ahead : this.#queue.backlogOf(request.model);
    const drainMs = this.#drainOf(request.model).msFor(before.costTokens, now) ?? before.count * SERVICE_GUESS_MS;
    const isAway = code === "no_worker";
    const retryAfterMs = isAway
      ? Math.round(msFromNanos(this.#options.noWorkerGrace))
      : Math.min(Math.max(Math.ceil(drainMs), atLeastMs), RETRY_AFTER_MAX_MS);
    const reason = isAway ? "unavailable" : "overloaded";
    effects.push({ kind: "RejectRequest", key, reason, code, message, retryAfterMs, field: "" });
  }

  /** What its answer was like: for the length of those to come, and for what its tenant is charged. */
  #learn({ request, tenant, chargedOutputTokens }: LiveRequest, { outputTokenCount }: RequestOutcome): void {
    const { promptTokenCount, promptClass, model, choiceCount = 1 } = request;
    if (outputTokenCount > 0) {
      this.#lengths.observe(tenant, promptTokenCount, outputTokenCount / choiceCount, promptClass);
    }
    this.#queue.sharesOf(model).charge(tenant, OUTPUT_TOKEN_PRICE * (outputTokenCount - chargedOutputTokens));
  }

  #release({ key }: LiveRequest, now: Instant, outcome?: RequestOutcome): void {
    this.#world.reservations.release(key);
    this.#world.policy.ended?.(key, now, outcome);
  }

  #forget(live: LiveRequest, now: Instant, outcome?: RequestOutcome): void {
    this.#live.delete(live.key);
    if (live.wasPlaced) this.#queue.sharesOf(live.request.model).end(live.tenant);
    if (live.isPlaced) this.#release(live, now, outcome);
    else this.#dequeue(live, now);
  }

  #lengthOf({ tenant = "", promptTokenCount, maxTokens, promptClass }: RequestShape): PredictedLength {
    return this.#lengths.predict(tenant, promptTokenCount, maxTokens, promptClass);
  }

  #drainOf(model: string): DrainRate {
    let rate = this.#drain.get(model);
    if (rate === undefined) {
      rate = new DrainRate();
      this.#drain.set(model, rate);
    }
    return rate;
  }

  #known(key: RequestKey): LiveRequest {
    const live = this.#live.get(key);
    assert(live !== undefined, `request ${key} waits and does not live`);
    return live;
  }

  checkInvariants(): void {
    this.#queue.checkInvariants();
    const { reservations } = this.#world;
    let placed = 0;
    for (const live of this.#live.values()) {
      assert(live.isPlaced === reservations.has(live.key), `request ${live.key} holds what its state does not say`);
      assert(live.isPlaced !== this.#queue.has(live.key), `request ${live.key} neither waits nor is placed, or both`);
      if (live.isPlaced) placed++;
    }
    assert(placed === reservations.requestCount, "a reservation outlived its request");
    assert(this.#live.size - placed === this.#queue.size, "a request waits that does not live");
  }
}
