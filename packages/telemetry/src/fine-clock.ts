import type { HrTime } from "@opentelemetry/api";
import type { SpanProcessor } from "@opentelemetry/sdk-trace";

/** Wall time below the millisecond: the monotonic clock, pinned to the wall clock's current millisecond at every reading. */
export class FineClock {
  #offsetMs = performance.timeOrigin;

  now(): HrTime {
    const wallMs = Date.now();
    const monotonicMs = performance.now();
    const fineMs = Math.min(Math.max(monotonicMs + this.#offsetMs, wallMs), wallMs + 0.999);
    this.#offsetMs = fineMs - monotonicMs;
    return [Math.floor(wallMs / 1_000), Math.round((wallMs % 1_000) * 1e6 + (fineMs - wallMs) * 1e6)];
  }
}

/**
 * The SDK starts spans at whole milliseconds; neighbours in one request are often closer than that. This processor, the first one, moves a
 * span that starts now to its exact start; its end and its events, which the SDK counts from there, move with it.
 */
export class FineStart implements SpanProcessor {
  readonly #clock = new FineClock();

  onStart(span: { readonly startTime: HrTime }): void {
    const now = this.#clock.now();
    const behindMs = (now[0] - span.startTime[0]) * 1_000 + (now[1] - span.startTime[1]) / 1e6;
    // Not now: its caller chose it.
    if (behindMs < 0 || behindMs >= 2) return;
    (span as { startTime: HrTime }).startTime = now;
  }

  onEnd(): void {}

  forceFlush(): Promise<void> {
    return Promise.resolve();
  }

  shutdown(): Promise<void> {
    return Promise.resolve();
  }
}
