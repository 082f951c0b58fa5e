/** A length of time in integer nanoseconds. */
export type Nanos = number & { readonly __unit: "nanos" };

/** A point of a monotonic clock, in integer nanoseconds since an origin that the process chose. Never compared across processes. */
export type Instant = number & { readonly __unit: "instant" };

/** The end of something that has none. */
export const NEVER = Number.POSITIVE_INFINITY as Instant;

export function nanosFromMs(ms: number): Nanos {
  return Math.round(ms * 1e6) as Nanos;
}

export function msFromNanos(nanos: number): number {
  return nanos / 1e6;
}

export function addNanos(instant: Instant, nanos: Nanos): Instant {
  return (instant + nanos) as Instant;
}

export function nanosBetween(earlier: Instant, later: Instant): Nanos {
  return (later - earlier) as Nanos;
}
