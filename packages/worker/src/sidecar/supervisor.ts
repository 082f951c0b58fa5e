import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import type { KvasirError } from "@kvasir/core";
import type { StepTimes } from "../engine/step-meter.ts";
import { type EngineLimits, Incarnation } from "../incarnation.ts";
import { Kernel, sidecarLost } from "../kernel/kernel.ts";
import type { Log } from "../log.ts";
import { TICKET_KEY_BYTES } from "../ticket.ts";
import type { LaunchSidecar, Sidecar } from "./sidecar-process.ts";

const RESTART_FIRST_MS = 250;
const RESTART_MAX_MS = 10_000;
/** An incarnation that lived this long was healthy: the next restart is quick again. */
const HEALTHY_MS = 30_000;
const STOP_GRACE_MS = 2_000;
const WATCH_INTERVAL_MS = 1_000;

export interface SupervisorOptions {
  readonly launch: LaunchSidecar;
  /** A number that no earlier start of any worker had. */
  readonly nextEpoch: () => Promise<number>;
  readonly limits: EngineLimits;
  /** A step that takes longer means a hung device. Larger: slow steps survive; smaller: hangs are found sooner. */
  readonly stepStallMs: number;
  readonly log: Log;
  readonly onStep: (times: StepTimes) => void;
  /** Something about the current incarnation's load changed. */
  readonly onLoad: () => void;
}

/**
 * Keeps a sidecar running. Each start is an incarnation with its own epoch, key, engine and blocks. When the sidecar dies, breaks the
 * step protocol or hangs, the incarnation ends, everything that ran on it fails with `unavailable`, and a new one is started.
 */
export class Supervisor {
  readonly #options: SupervisorOptions;
  readonly #watchers = new Set<(incarnation: Incarnation | undefined) => void>();
  readonly #stopping = new AbortController();
  #current: Incarnation | undefined;
  #sidecar: Sidecar | undefined;
  #running: Promise<void> | undefined;
  #restartCount = 0;

  constructor(options: SupervisorOptions) {
    this.#options = options;
  }

  /** The incarnation that takes work, or undefined while there is none. */
  get current(): Incarnation | undefined {
    return this.#current;
  }

  get sidecarPid(): number | undefined {
    return this.#sidecar?.pid;
  }

  get restartCount(): number {
    return this.#restartCount;
  }

  /** Calls back at each change of `current`. */
  watch(watcher: (incarnation: Incarnation | undefined) => void): void {
    this.#watchers.add(watcher);
  }

  /** Starts the first incarnation. Rejects when it fails: a wrong model or flag is no reason to try again. */
  async start(): Promise<void> {
    const first = await this.#launch();
    this.#running = this.#keepRunning(first);
  }

  /** Ends the incarnation and its process. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#running;
    await this.#sidecar?.stop(STOP_GRACE_MS);
  }

  async #keepRunning(first: Started): Promise<void> {
    let started: Started | undefined = first;
    let delayMs = RESTART_FIRST_MS;
    while (!this.#stopping.signal.aborted) {
      if (started) {
        const startedAtMs = performance.now();
        const error = await this.#untilLost(started);
        this.#publish(undefined);
        started.incarnation.end(error);
        await started.sidecar.stop(this.#stopping.signal.aborted ? STOP_GRACE_MS : 0);
        if (this.#stopping.signal.aborted) return;
        this.#options.log.error({ epoch: String(started.incarnation.epoch) }, `${error.message}; starting a new one`);
        if (performance.now() - startedAtMs > HEALTHY_MS) delayMs = RESTART_FIRST_MS;
      }
      await sleep(delayMs, undefined, { signal: this.#stopping.signal }).catch(() => undefined);
      if (this.#stopping.signal.aborted) return;
      delayMs = Math.min(2 * delayMs, RESTART_MAX_MS);
      this.#restartCount++;
      started = await this.#launch().catch((error: unknown) => {
        this.#options.log.error({ nextTryMs: delayMs }, error instanceof Error ? error.message : String(error));
        return undefined;
      });
    }
  }

  async #launch(): Promise<Started> {
    const { launch, nextEpoch, limits, onLoad, onStep } = this.#options;
    const epoch = BigInt(await nextEpoch());
    const ticketKey = randomBytes(TICKET_KEY_BYTES);
    const sidecar = await launch({ epoch, ticketKey });
    this.#sidecar = sidecar;
    const kernel = new Kernel(sidecar.socketPath);
    const lost = Promise.withResolvers<KvasirError>();
    try {
      const description = await kernel.describe();
      const incarnation = new Incarnation({
        epoch,
        ticketKey,
        kernel,
        description,
        limits,
        hooks: { changed: onLoad, stepAnswered: onStep, lost: lost.resolve },
      });
      this.#publish(incarnation);
      return { sidecar, incarnation, lost: lost.promise };
    } catch (error) {
      kernel.close();
      await sidecar.stop(0);
      throw error;
    }
  }

  /** Waits for the first sign that the incarnation is over. */
  async #untilLost({ sidecar, incarnation, lost }: Started): Promise<KvasirError> {
    const stalled = Promise.withResolvers<KvasirError>();
    const watch = setInterval(() => {
      for (const lease of incarnation.sweepLeases()) {
        this.#options.log.error({ lease }, "a lease outlived its hand-over; its sequence is closed");
      }
      const stepMs = incarnation.engine.oldestStepMs();
      if (stepMs > this.#options.stepStallMs) {
        stalled.resolve(sidecarLost(`no step was finished for ${Math.round(stepMs)} ms`));
      }
    }, WATCH_INTERVAL_MS);
    const stopped = new Promise<KvasirError>((resolve) => {
      const stop = () => resolve(sidecarLost("the worker stops"));
      if (this.#stopping.signal.aborted) stop();
      this.#stopping.signal.addEventListener("abort", stop, { once: true });
    });
    const exited = sidecar.exited.then((line) => sidecarLost(line));
    const error = await Promise.race([exited, lost, stalled.promise, stopped]);
    clearInterval(watch);
    return error;
  }

  #publish(incarnation: Incarnation | undefined): void {
    this.#current = incarnation;
    for (const watcher of this.#watchers) watcher(incarnation);
  }
}

interface Started {
  readonly sidecar: Sidecar;
  readonly incarnation: Incarnation;
  readonly lost: Promise<KvasirError>;
}
