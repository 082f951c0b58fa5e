import type { AttachedWorker, Exclusion, RequestKey, RequestShape } from "../placement/index.ts";
import { addNanos, type Instant, nanosFromMs } from "../time.ts";
import type { Waiting } from "./admission-queue.ts";
import { CLASS_PATIENCE, type ServiceClass } from "./service-class.ts";
import { OUTPUT_TOKEN_PRICE } from "./tenant-shares.ts";

/** Failed workers remembered per request; a message may name more, honest ones never do. */
const EXCLUDED_MAX = 64;

/** A request from its arrival to its end, as the router keeps it. */
export interface LiveRequest {
  readonly key: RequestKey;
  readonly request: RequestShape;
  readonly tenant: string;
  /** Workers that failed it, and when that was said. */
  readonly excludedAt: Map<string, Instant>;
  readonly arrivedAt: Instant;
  serviceClass: ServiceClass;
  /** It cannot meet its targets, and is served all the same. */
  isBestEffort: boolean;
  isPlaced: boolean;
  wasPlaced: boolean;
  /** Workers of its latest placement. */
  placedOn: readonly AttachedWorker[];
  /** Output tokens that its tenant was charged for. */
  chargedOutputTokens: number;
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

export function newLiveRequest(key: RequestKey, request: RequestShape, now: Instant): LiveRequest {
  return {
    key,
    request,
    tenant: request.tenant ?? "",
    excludedAt: new Map(),
    arrivedAt: now,
    serviceClass: request.serviceClass ?? "default",
    isBestEffort: false,
    isPlaced: false,
    wasPlaced: false,
    placedOn: [],
    chargedOutputTokens: 0,
    keptPrefillWorkerId: "",
    waitingSince: now,
    noWorkerSince: undefined,
    checkedVersion: -1,
    lastPosition: -1,
    blockedBy: "",
  };
}

/** It waits from now on, for another placement. */
export function waitAnew(live: LiveRequest, now: Instant): void {
  live.isPlaced = false;
  live.waitingSince = now;
  live.noWorkerSince = undefined;
  live.checkedVersion = -1;
  live.lastPosition = -1;
}

/** Its place in the queue; `meanTokens`: of one answer. */
export function waitingOf(live: LiveRequest, meanTokens: number): Waiting {
  const { request, serviceClass, isBestEffort } = live;
  const ttftMs = isBestEffort ? undefined : request.objectives?.ttftMs;
  const patience = ttftMs === undefined ? CLASS_PATIENCE[serviceClass] : nanosFromMs(ttftMs);
  return {
    key: live.key,
    tenant: live.tenant,
    weight: request.tenantWeight ?? 1,
    serviceClass,
    priority: request.priority ?? 0,
    deadline: addNanos(live.arrivedAt, patience),
    costTokens: costTokens(request, request.promptTokenCount, meanTokens),
    isReturning: live.wasPlaced,
  };
}

/** What its tenant is charged for computing so much of the prompt, and answers of this length. */
export function costTokens(request: RequestShape, uncachedTokenCount: number, meanTokens: number): number {
  return uncachedTokenCount + OUTPUT_TOKEN_PRICE * (request.choiceCount ?? 1) * meanTokens;
}

export function exclude(live: LiveRequest, workerIds: readonly string[], now: Instant): void {
  for (const workerId of workerIds) {
    if (live.excludedAt.has(workerId) || live.excludedAt.size < EXCLUDED_MAX) live.excludedAt.set(workerId, now);
  }
}

/**
 * A worker that failed a request is avoided for it, and one that fails others too for all (`isSuspect`). Before it has reported again it is not used at all: its stream may not have
 * noticed yet that it is dead.
 */
export function exclusionOf(
  worker: AttachedWorker,
  excludedAt: ReadonlyMap<string, Instant>,
  isSuspect: boolean,
): Exclusion {
  const since = excludedAt.get(worker.facts.workerId);
  if (since === undefined) return isSuspect ? "avoid" : "none";
  return worker.reportedAt > since ? "avoid" : "forbid";
}
