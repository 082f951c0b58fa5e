import type { Instant } from "@kvasir/core";

/** The worker's monotonic clock. The core gets its values as arguments. */
export function now(): Instant {
  return Math.round(performance.now() * 1e6) as Instant;
}
