import type { ModelShares } from "../admission/admission-control.ts";
import type { ServiceClass } from "../admission/service-class.ts";
import type { MeasuredLink } from "../codec-level/index.ts";
import type { ErrorReason } from "../kvasir-error.ts";
import type { HolderEvent } from "../prefix-index/index.ts";
import type { Candidate } from "./choose-placement.ts";
import type { StreamId } from "./cluster-view.ts";
import type { RequestOutcome } from "./placement-policy.ts";
import type { RequestKey } from "./reservations.ts";
import type { StoreFacts, StoreLoad } from "./store-facts.ts";
import type { ReportedLoad, RequestShape, WorkerFacts } from "./worker-facts.ts";

/** What happened to the router. */
export type RouterEvent =
  | {
      readonly kind: "WorkerAttached";
      readonly streamId: StreamId;
      readonly epoch: number;
      readonly sequence: number;
      readonly facts: WorkerFacts;
    }
  | {
      readonly kind: "WorkerReported";
      readonly streamId: StreamId;
      readonly epoch: number;
      readonly sequence: number;
      readonly load: ReportedLoad;
      /** Measured since its last report. */
      readonly links?: readonly MeasuredLink[];
    }
  /** What a worker's prefix cache, or a store, holds. */
  | {
      readonly kind: "WorkerCacheChanged";
      readonly streamId: StreamId;
      readonly epoch: number;
      readonly sequence: number;
      readonly change: HolderEvent;
    }
  | {
      readonly kind: "StoreAttached";
      readonly streamId: StreamId;
      readonly epoch: number;
      readonly sequence: number;
      readonly facts: StoreFacts;
    }
  | {
      readonly kind: "StoreReported";
      readonly streamId: StreamId;
      readonly epoch: number;
      readonly sequence: number;
      readonly load: StoreLoad;
    }
  /** Its stream ended, or it said goodbye: a worker's or a store's. */
  | { readonly kind: "WorkerLeft"; readonly streamId: StreamId }
  | {
      readonly kind: "RequestArrived";
      readonly key: RequestKey;
      readonly request: RequestShape;
      /** Workers that failed it while another router was asked. */
      readonly excludedWorkerIds?: readonly string[];
    }
  /** It asks for another placement. */
  | {
      readonly kind: "RequestRetried";
      readonly key: RequestKey;
      readonly excludedWorkerIds: readonly string[];
      /** Prefill worker that may still hold what it computed for the request. */
      readonly keptPrefillWorkerId?: string;
    }
  | { readonly kind: "FirstTokenArrived"; readonly key: RequestKey }
  /** Its stream ended, however it did; `outcome`: as far as its gateway told. */
  | { readonly kind: "RequestEnded"; readonly key: RequestKey; readonly outcome?: RequestOutcome }
  /** This router leads from now on; so far tenants were served by the one before it, as it left word. */
  | { readonly kind: "SharesRestored"; readonly left: readonly ModelShares[] }
  /** Time passed. Deadlines are kept to the interval at which this comes. */
  | { readonly kind: "Ticked" };

/** The decision for one request, with what it was made from. */
export interface PlacementDecision {
  readonly candidates: readonly [Candidate, ...Candidate[]];
  readonly promptTokenCount: number;
  /** From arrival (or the last retry) to now. */
  readonly waitedMs: number;
  /** `waitedMs` included. */
  readonly predictedTtftMs: number;
  readonly predictedTbtMs: number;
  /** Of one answer. */
  readonly predictedOutputTokens: number;
  /** As which it is served: `flex` where its targets could not be met and it may be late. */
  readonly serviceClass: ServiceClass;
  /** It cannot meet its targets, and is served all the same. */
  readonly isBestEffort: boolean;
  readonly reason: string;
}

/** Why a request is refused, for programs. */
export type RefusalCode =
  /** Too many wait. */
  | "queue_full"
  /** It waited for as long as anybody may. */
  | "queue_timeout"
  /** It could not be served within its targets. */
  | "slo_unattainable"
  /** No worker that could serve it is attached. */
  | "no_worker"
  /** Nobody could serve it, ever. */
  | "invalid_request";

/** What the shell must do. */
export type RouterEffect =
  | { readonly kind: "AcknowledgeWorker"; readonly streamId: StreamId; readonly sequence: number }
  /** A change of its cache is missing: asks for all of it. */
  | { readonly kind: "WantCacheSnapshot"; readonly streamId: StreamId }
  /** Ends an attach stream with STALE_EPOCH. */
  | { readonly kind: "RefuseWorker"; readonly streamId: StreamId; readonly message: string }
  /** Says that a worker went silent; nothing is placed on it until it reports. */
  | { readonly kind: "ReportLostWorker"; readonly workerId: string }
  | { readonly kind: "SendQueued"; readonly key: RequestKey; readonly position: number }
  | { readonly kind: "SendPlacement"; readonly key: RequestKey; readonly decision: PlacementDecision }
  /** Ends a request's stream with an error. */
  | {
      readonly kind: "RejectRequest";
      readonly key: RequestKey;
      readonly reason: Extract<ErrorReason, "overloaded" | "unavailable" | "invalid_request">;
      readonly code: RefusalCode;
      readonly message: string;
      readonly retryAfterMs: number;
      readonly field: string;
    };
