import { addNanos, type Instant, nanosFromMs } from "../time.ts";
import type { RequestKey } from "./reservations.ts";

/** Different requests that fail on a worker, with none between them that got its first token there, before it is avoided. */
const FAILURES_MIN = 3;
const AVOIDED_FIRST_MS = 1_000;
const AVOIDED_MAX_MS = 30_000;
/** Incarnations remembered; the one that failed longest ago is forgotten first. */
const WORKERS_MAX = 4_096;

interface Suspect {
  readonly failedBy: Set<RequestKey>;
  avoidedUntil: Instant;
}

/**
 * Workers that fail what they are given. One that fails at once always looks idle, and would draw all requests: it is avoided for a second, and
 * twice as long each time that the first request after it fails too, up to half a minute. It is used where there is no other, and trusted again with
 * one first token (a circuit breaker; Nygard, "Release It!", 2007).
 */
export class WorkerTrust {
  readonly #suspects = new Map<string, Suspect>();

  failed(incarnation: string, key: RequestKey, now: Instant): void {
    const suspect = this.#suspects.get(incarnation) ?? { failedBy: new Set(), avoidedUntil: now };
    if (suspect.failedBy.has(key)) return;
    // What failed while it is avoided was placed before.
    const isCounted = suspect.failedBy.size < FAILURES_MIN || now >= suspect.avoidedUntil;
    if (isCounted) suspect.failedBy.add(key);
    this.#suspects.delete(incarnation);
    this.#suspects.set(incarnation, suspect);
    const excess = suspect.failedBy.size - FAILURES_MIN;
    if (isCounted && excess >= 0) {
      const avoidedMs = Math.min(AVOIDED_MAX_MS, AVOIDED_FIRST_MS * 2 ** excess);
      suspect.avoidedUntil = addNanos(now, nanosFromMs(avoidedMs));
    }
    if (this.#suspects.size <= WORKERS_MAX) return;
    const oldest = this.#suspects.keys().next().value;
    if (oldest !== undefined) this.#suspects.delete(oldest);
  }

  /** A request got its first token there. */
  succeeded(incarnation: string): void {
    this.#suspects.delete(incarnation);
  }

  isAvoided(incarnation: string, now: Instant): boolean {
    const suspect = this.#suspects.get(incarnation);
    return suspect !== undefined && now < suspect.avoidedUntil;
  }
}
