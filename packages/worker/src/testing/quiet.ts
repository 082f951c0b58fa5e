import { setTimeout as sleep } from "node:timers/promises";
import { expect } from "vitest";
import type { TestWorker } from "./harness.ts";

/** Waits until `check` holds; fails with its last complaint. */
export async function eventually(check: () => void, withinMs = 10_000): Promise<void> {
  const until = performance.now() + withinMs;
  for (;;) {
    try {
      check();
      return;
    } catch (error) {
      if (performance.now() > until) throw error;
      await sleep(10);
    }
  }
}

/** Lets the first `passCount` that ask it go on; the others wait until it is opened. */
export class Gate {
  readonly #opened = Promise.withResolvers<void>();
  readonly #passCount: number;
  #askedCount = 0;

  constructor(passCount = 0) {
    this.#passCount = passCount;
  }

  readonly pass = (): Promise<void> =>
    ++this.#askedCount > this.#passCount ? this.#opened.promise : Promise.resolve();

  /** Resolves when somebody waits. */
  reached(): Promise<void> {
    return eventually(() => expect(this.#askedCount).toBeGreaterThan(this.#passCount));
  }

  open(): void {
    this.#opened.resolve();
  }
}

/** Nothing is held any more on any of the workers, and nothing was ever done to a block that was not its owner's to touch. */
export async function expectQuiet(...workers: TestWorker[]): Promise<void> {
  for (const { worker, kernel } of workers) {
    await eventually(() => {
      const incarnation = worker.supervisor.current;
      const audit = incarnation?.audit();
      const blocks = { used: audit?.used, reserved: audit?.reserved, leased: audit?.leased, pinned: audit?.pinned };
      expect({ ...blocks, orphaned: audit?.orphaned, leases: incarnation?.leases.size }).toEqual({
        used: 0,
        reserved: 0,
        leased: 0,
        pinned: 0,
        orphaned: 0,
        leases: 0,
      });
      expect(kernel().openExportCount).toBe(0);
      expect(kernel().runningFetchCount).toBe(0);
      expect(kernel().device.sequences.size).toBe(0);
    });
    expect(kernel().violations).toEqual([]);
    worker.supervisor.current?.engine.scheduler.checkInvariants();
  }
}
