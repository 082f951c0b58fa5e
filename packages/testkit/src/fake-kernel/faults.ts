import type { ErrorReason } from "@kvasir/core";

/** What a fake sidecar does wrong. All are read at the moment they matter, so a test may change them while it runs. */
export interface Faults {
  /** Time that each step takes. */
  stepDelayMs: number;
  /** Awaited before each step, publication and block of a fetch: a test that keeps one waiting keeps its request where it is. */
  beforeStep: (() => Promise<unknown>) | undefined;
  beforePublish: (() => Promise<unknown>) | undefined;
  beforeFetchedBlock: (() => Promise<unknown>) | undefined;
  /** Step id, counted over the stream, from which the Execute stream breaks. */
  failStepId: number;
  /** Step id from which no step is answered any more. */
  hangStepId: number;
  /** Step id from which steps are answered as if they were others. */
  lieStepId: number;
  /** Ends each fetch with this reason before its first byte. */
  refuseFetch: ErrorReason | undefined;
  /** Tokens after which a fetch stops and says nothing more. */
  stallFetchAfter: number;
  /** Ends the fetch stream without `complete` after this many tokens. */
  dropFetchAfter: number;
  refusePublish: ErrorReason | undefined;
  publishDelayMs: number;
  /** Time that Fence and Release take. */
  fenceDelayMs: number;
}

export function noFaults(): Faults {
  return {
    stepDelayMs: 0,
    beforeStep: undefined,
    beforePublish: undefined,
    beforeFetchedBlock: undefined,
    failStepId: Number.POSITIVE_INFINITY,
    hangStepId: Number.POSITIVE_INFINITY,
    lieStepId: Number.POSITIVE_INFINITY,
    refuseFetch: undefined,
    stallFetchAfter: Number.POSITIVE_INFINITY,
    dropFetchAfter: Number.POSITIVE_INFINITY,
    refusePublish: undefined,
    publishDelayMs: 0,
    fenceDelayMs: 0,
  };
}
