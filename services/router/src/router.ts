import {
  type Instant,
  KvasirError,
  msFromNanos,
  nanosBetween,
  type PlacementDecision,
  type RequestKey,
  type RequestOutcome,
  type RouterEffect,
  type RouterEvent,
  type RouterOptions,
  RouterState,
  type StreamId,
  unreachable,
} from "@kvasir/core";
import type { Registry } from "prom-client";
import { type RouterMetrics, registerMetrics } from "./metrics.ts";

/** How often deadlines are looked at; they are kept to this. */
const TICK_MS = 50;

export interface RouterLog {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
}

/** What a request's stream does with the router's answers. */
export interface RequestSink {
  queued(position: number): void;
  placed(decision: PlacementDecision): void;
  /** Ends the stream. */
  fail(error: KvasirError): void;
}

/** What a worker's stream does with the router's answers. */
export interface WorkerSink {
  acknowledge(sequence: number): void;
  /** The router's leadership changed. */
  leadershipChanged(): void;
  /** A change of the worker's cache is missing. */
  wantCacheSnapshot(): void;
  /** Ends the stream. */
  fail(error: KvasirError): void;
}

/** The shell around `RouterState`: gives it events and the time, and hands its effects to the streams they are for. */
export class Router {
  readonly state: RouterState;
  readonly metrics: RouterMetrics;
  readonly log: RouterLog;
  readonly #requests = new Map<RequestKey, RequestSink>();
  readonly #workers = new Map<StreamId, WorkerSink>();
  readonly #timer: NodeJS.Timeout;
  #keys = 0;
  #leaderToken = 0;

  constructor(options: RouterOptions, registry: Registry, log: RouterLog) {
    this.state = new RouterState(options);
    this.metrics = registerMetrics(registry, this.state);
    this.log = log;
    this.#timer = setInterval(() => this.apply({ kind: "Ticked" }), TICK_MS);
  }

  /** Fencing token; 0 while the router stands by. */
  get leaderToken(): number {
    return this.#leaderToken;
  }

  /**
   * The router leads, or another one does. A standby follows the same attach streams, so it places from what it knows at once. Who stops
   * leading ends its lines: requests that wait ask the new leader, those that were placed need none any more.
   */
  setLeaderToken(token: number): void {
    this.#leaderToken = token;
    for (const sink of this.#workers.values()) sink.leadershipChanged();
    if (token > 0) return;
    const error = new KvasirError({ reason: "unavailable", message: "another router leads now; ask it" });
    for (const sink of [...this.#requests.values()]) sink.fail(error);
  }

  /** Ends every stream in a way that callers tell from a cancel: they go on elsewhere, or without a router. */
  close(): void {
    clearInterval(this.#timer);
    const error = new KvasirError({ reason: "unavailable", message: "the router is stopping; ask another" });
    for (const sink of [...this.#requests.values(), ...this.#workers.values()]) sink.fail(error);
  }

  /** The answers for `key` go to `sink` until `closeRequest`. Keys are in the order of arrival. */
  openRequest(sink: RequestSink): RequestKey {
    const key = ++this.#keys as RequestKey;
    this.#requests.set(key, sink);
    return key;
  }

  /** `outcome`: what its answers were like, where it ran. */
  closeRequest(key: RequestKey, outcome?: RequestOutcome): void {
    this.#requests.delete(key);
    this.apply({ kind: "RequestEnded", key, ...(outcome === undefined ? {} : { outcome }) });
  }

  openWorker(sink: WorkerSink): StreamId {
    const streamId = ++this.#keys;
    this.#workers.set(streamId, sink);
    return streamId;
  }

  closeWorker(streamId: StreamId): void {
    this.#workers.delete(streamId);
    this.apply({ kind: "WorkerLeft", streamId });
  }

  /** The clock of its state. */
  now(): Instant {
    return Math.round(performance.now() * 1e6) as Instant;
  }

  apply(event: RouterEvent): void {
    const isDecision = event.kind === "RequestArrived" || event.kind === "RequestRetried";
    if (event.kind === "RequestRetried") this.metrics.retried();
    const start = this.now();
    const effects = this.state.apply(event, start);
    if (isDecision) this.metrics.decided(msFromNanos(nanosBetween(start, this.now())) / 1_000);
    for (const effect of effects) this.#carryOut(effect);
  }

  #carryOut(effect: RouterEffect): void {
    switch (effect.kind) {
      case "SendQueued":
        this.#requests.get(effect.key)?.queued(effect.position);
        break;
      case "SendPlacement":
        this.metrics.placed(effect.decision);
        this.#requests.get(effect.key)?.placed(effect.decision);
        break;
      case "RejectRequest":
        this.metrics.rejected(effect.reason, effect.code);
        this.#requests.get(effect.key)?.fail(new KvasirError(effect));
        break;
      case "AcknowledgeWorker":
        this.#workers.get(effect.streamId)?.acknowledge(effect.sequence);
        break;
      case "WantCacheSnapshot":
        this.metrics.snapshotWanted();
        this.#workers.get(effect.streamId)?.wantCacheSnapshot();
        break;
      case "RefuseWorker":
        this.metrics.streamRefused();
        this.#workers.get(effect.streamId)?.fail(new KvasirError({ reason: "stale_epoch", message: effect.message }));
        break;
      case "ReportLostWorker":
        this.metrics.workerLost();
        this.log.warn({ workerId: effect.workerId }, "a worker went silent; nothing is placed on it until it reports");
        break;
      default:
        unreachable(effect);
    }
  }
}
