import { assert } from "../assert.ts";

/** What an output token counts beside a token of the prompt that is computed. */
export const OUTPUT_TOKEN_PRICE = 2;

/** What a router leaves of its tenants' counters to the one that leads after it. */
export interface SharesSnapshot {
  /** Where a tenant that begins to wait stands at least. */
  readonly floor: number;
  readonly tenants: readonly {
    readonly tenant: string;
    readonly counter: number;
    readonly isWaiting: boolean;
  }[];
}

/** Tenants in a snapshot: those that wait, then those that were served most. Larger: longer messages; smaller: more tenants begin at the floor. */
const SNAPSHOT_MAX = 1_024;

/** Tenants remembered that neither wait nor run. */
const IDLE_MAX = 4_096;

interface Tenant {
  /** Tokens served, each over the tenant's weight at that time. */
  counter: number;
  weight: number;
  waitingCount: number;
  /** Requests whose cost may still be corrected. */
  runningCount: number;
}

/**
 * Virtual token counters: what each tenant was served, in tokens over its weight; whoever has the smallest is served next. A tenant that begins to wait is
 * lifted to the smallest counter among those that wait, or to that of the last one that did, so that nobody saves up credit while idle. Of
 * two tenants that both wait all the time, neither gets more than `2·max(L, M)` tokens ahead of the other, with L the largest prompt and M what
 * runs at once (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, Theorem 4.4). Changed: only tokens that are
 * computed count, so that reuse is no loss to who brings it; output is charged as predicted when it is placed (their variant with prediction) and
 * corrected at its end.
 */
export class TenantShares {
  readonly #tenants = new Map<string, Tenant>();
  readonly #waiting = new Set<Tenant>();
  #last: string | undefined;
  /** Of the router that led before. */
  #restoredFloor = 0;

  counter(tenant: string): number {
    return this.#tenants.get(tenant)?.counter ?? 0;
  }

  /** Tenants remembered. */
  get size(): number {
    return this.#tenants.size;
  }

  /** One of its requests begins to wait. */
  wait(tenant: string, weight: number): void {
    assert(weight > 0, `weight ${weight} of ${tenant} is not above 0`);
    let entry = this.#tenants.get(tenant);
    if (entry === undefined) {
      entry = { counter: 0, weight, waitingCount: 0, runningCount: 0 };
      this.#tenants.set(tenant, entry);
    }
    entry.weight = weight;
    if (!this.#waiting.has(entry)) entry.counter = Math.max(entry.counter, this.#floor());
    entry.waitingCount++;
    this.#waiting.add(entry);
    if (this.#tenants.size > 2 * IDLE_MAX) this.#forgetIdle();
  }

  /** One of its requests waits no more, for whatever reason. */
  leave(tenant: string): void {
    const entry = this.#known(tenant);
    entry.waitingCount--;
    if (entry.waitingCount > 0) return;
    this.#waiting.delete(entry);
    this.#last = tenant;
  }

  /** It is given this much; negative: it took less than it was charged for. */
  charge(tenant: string, tokens: number): void {
    const entry = this.#tenants.get(tenant);
    if (entry !== undefined) entry.counter += tokens / entry.weight;
  }

  begin(tenant: string): void {
    this.#known(tenant).runningCount++;
  }

  end(tenant: string): void {
    this.#known(tenant).runningCount--;
  }

  snapshot(): SharesSnapshot {
    const tenants = [...this.#tenants].map(([tenant, entry]) => {
      return { tenant, counter: entry.counter, isWaiting: this.#waiting.has(entry) };
    });
    tenants.sort((a, b) => Number(b.isWaiting) - Number(a.isWaiting) || b.counter - a.counter);
    return { floor: this.#floor(), tenants: tenants.slice(0, SNAPSHOT_MAX) };
  }

  /**
   * Takes over what another router counted. Nobody loses what is counted here. Tenants that waited there come back one after the other: they
   * count as waiting until `settle`, so that the first to be back does not lift the others to where it stands.
   */
  restore({ floor, tenants }: SharesSnapshot): void {
    this.#restoredFloor = Math.max(this.#restoredFloor, floor);
    for (const { tenant, counter, isWaiting } of tenants) {
      let entry = this.#tenants.get(tenant);
      if (entry === undefined) {
        entry = { counter, weight: 1, waitingCount: 0, runningCount: 0 };
        this.#tenants.set(tenant, entry);
      }
      entry.counter = Math.max(entry.counter, counter);
      if (isWaiting) this.#waiting.add(entry);
    }
  }

  /** Who has not come back by now is idle. */
  settle(): void {
    for (const entry of this.#waiting) if (entry.waitingCount === 0) this.#waiting.delete(entry);
  }

  checkInvariants(waiting: ReadonlyMap<string, number>): void {
    for (const [tenant, { waitingCount, counter }] of this.#tenants) {
      assert(waitingCount === (waiting.get(tenant) ?? 0), `${tenant} waits ${waitingCount} times by its counter`);
      assert(Number.isFinite(counter), `the counter of ${tenant} is ${counter}`);
    }
    for (const tenant of waiting.keys()) {
      assert(this.#waiting.has(this.#known(tenant)), `${tenant} waits and is not lifted to`);
    }
  }

  #known(tenant: string): Tenant {
    const entry = this.#tenants.get(tenant);
    assert(entry !== undefined, `tenant ${tenant} is not known`);
    return entry;
  }

  /** Where a tenant that begins to wait stands at least. */
  #floor(): number {
    let least = Number.POSITIVE_INFINITY;
    for (const { counter } of this.#waiting) least = Math.min(least, counter);
    if (least < Number.POSITIVE_INFINITY) return least;
    return Math.max(this.#restoredFloor, this.#last === undefined ? 0 : this.counter(this.#last));
  }

  /** Those with the smallest counters go first: below the floor they lose nothing. */
  #forgetIdle(): void {
    const idle = [...this.#tenants].filter(
      ([tenant, { waitingCount, runningCount }]) => waitingCount + runningCount === 0 && tenant !== this.#last,
    );
    idle.sort(([, a], [, b]) => a.counter - b.counter);
    for (const [tenant] of idle.slice(0, Math.max(0, idle.length - IDLE_MAX))) this.#tenants.delete(tenant);
  }
}
