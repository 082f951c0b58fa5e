import type { Instant, RouterEffect, RouterEvent, RouterState } from "@kvasir/core";

/** Whether an event comes from a worker's or a store's attach stream, and so reaches every router. */
function isOfWorkers({ kind }: RouterEvent): boolean {
  return kind.startsWith("Worker") || kind.startsWith("Store") || kind === "Ticked";
}

/**
 * A leading router and those that stand by. Workers tell all of them what they do, so that a standby knows caches and loads when it leads; what the
 * leader alone knew, its queue and its reservations, dies with it. While nobody leads, requests are told to nobody.
 */
export class SimulatedRouters {
  readonly #routers: RouterState[];
  #isLed = true;
  /** Goes up with each leader: what an earlier one was told of a request is not known to this one. */
  generation = 0;

  constructor(routers: readonly RouterState[]) {
    this.#routers = [...routers];
  }

  /** What the leader wants done; of the others only what their workers' streams need. */
  tell(event: RouterEvent, now: Instant): readonly RouterEffect[] {
    const [leader, ...standbys] = this.#routers;
    if (leader === undefined) return [];
    if (!isOfWorkers(event)) return this.#isLed ? leader.apply(event, now) : [];
    const effects = leader.apply(event, now).filter((effect) => this.#isLed || isForWorker(effect));
    for (const standby of standbys) effects.push(...standby.apply(event, now).filter(isForWorker));
    return effects;
  }

  get isLed(): boolean {
    return this.#isLed;
  }

  /** The leader is gone. */
  kill(): void {
    this.#routers.shift();
    this.#isLed = false;
  }

  /** The first standby leads. */
  takeOver(): void {
    if (this.#routers.length === 0) throw new Error("no router stands by to take over; give the simulation more");
    this.#isLed = true;
    this.generation++;
  }
}

function isForWorker({ kind }: RouterEffect): boolean {
  return kind === "WantCacheSnapshot" || kind === "RefuseWorker" || kind === "AcknowledgeWorker";
}
