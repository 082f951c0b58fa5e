import { KvasirError } from "@kvasir/core";

/** The requests being served, so that a gateway that stops lets them end and tells those that it cannot wait for. */
export class RunningRequests {
  readonly #aborts = new Set<AbortController>();
  #onIdle: (() => void) | undefined;

  get count(): number {
    return this.#aborts.size;
  }

  add(abort: AbortController): void {
    this.#aborts.add(abort);
  }

  delete(abort: AbortController): void {
    this.#aborts.delete(abort);
    if (this.#aborts.size === 0) this.#onIdle?.();
  }

  /** Waits up to `graceMs` for all to end, then tells the rest `unavailable` and waits up to `tellMs` for that to be read. */
  async drain(graceMs: number, tellMs: number): Promise<void> {
    await this.#idle(graceMs);
    const message = "the gateway is stopping; try again";
    const stopping = new KvasirError({ reason: "unavailable", message, retryAfterMs: 1_000 });
    for (const abort of this.#aborts) abort.abort(stopping);
    await this.#idle(tellMs);
  }

  #idle(maxMs: number): Promise<void> {
    if (this.#aborts.size === 0) return Promise.resolve();
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, maxMs);
      this.#onIdle = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}
