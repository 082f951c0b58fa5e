import { assert } from "../assert.ts";
import type { RequestKey } from "../placement/reservations.ts";
import type { Instant } from "../time.ts";
import { CLASS_OFFSET_TOKENS, type ServiceClass } from "./service-class.ts";
import { TenantShares } from "./tenant-shares.ts";

/** A request that waits. */
export interface Waiting {
  readonly key: RequestKey;
  readonly tenant: string;
  /** Of the tenant; its share of what is served is this over the sum of those that wait. */
  readonly weight: number;
  readonly serviceClass: ServiceClass;
  /** Smaller goes first within the tenant's requests of the class. */
  readonly priority: number;
  /** By when its first token is due; earlier goes first among equal priorities. */
  readonly deadline: Instant;
  /** Tokens that serving it is expected to take. */
  readonly costTokens: number;
  /** It was served before and lost a worker: it goes before all others, and is not charged again. */
  readonly isReturning: boolean;
}

/** Some of those that wait, or all. */
export interface Backlog {
  readonly count: number;
  readonly costTokens: number;
}

/** Requests of one tenant and class, in their order. */
interface Flow {
  readonly name: string;
  readonly tenant: string;
  readonly serviceClass: ServiceClass;
  readonly isReturning: boolean;
  readonly entries: Waiting[];
  /** The tenant's counter when the first one became first. */
  stamp: number;
}

interface Lane {
  readonly flows: Map<string, Flow>;
  readonly shares: TenantShares;
  size: number;
  costTokens: number;
}

const RETURNING = "returning";

/**
 * Requests that wait, apart by model: one model's shortage does not hold up another. Next is the earliest deadline of the tenant and class whose virtual
 * counter is smallest; a class stands a fixed number of tokens before or behind its tenant's counter. The counter is taken when a request becomes first
 * of its class, so that a tenant's own urgent requests delay its other ones by at most the distance between the classes.
 */
export class AdmissionQueue {
  readonly #lanes = new Map<string, Lane>();
  readonly #waiting = new Map<RequestKey, { readonly model: string; readonly flow: Flow; readonly entry: Waiting }>();

  get size(): number {
    return this.#waiting.size;
  }

  has(key: RequestKey): boolean {
    return this.#waiting.has(key);
  }

  /** Models that somebody waits for. */
  models(): readonly string[] {
    return [...this.#lanes].flatMap(([model, { size }]) => (size > 0 ? [model] : []));
  }

  backlogOf(model: string): Backlog {
    const { size: count = 0, costTokens = 0 } = this.#lanes.get(model) ?? {};
    return { count, costTokens };
  }

  /** Models that somebody ever waited for. */
  knownModels(): readonly string[] {
    return [...this.#lanes.keys()];
  }

  /** Counters of a model's tenants. */
  sharesOf(model: string): TenantShares {
    return this.#lane(model).shares;
  }

  add(model: string, entry: Waiting): void {
    assert(!this.#waiting.has(entry.key), `request ${entry.key} waits already`);
    const lane = this.#lane(model);
    lane.shares.wait(entry.tenant, entry.weight);
    const { tenant, serviceClass, isReturning } = entry;
    const name = isReturning ? RETURNING : `${serviceClass} ${tenant}`;
    let flow = lane.flows.get(name);
    if (flow === undefined) {
      flow = { name, tenant, serviceClass, isReturning, entries: [], stamp: 0 };
      lane.flows.set(name, flow);
    }
    const index = lowerBound(flow.entries, entry);
    flow.entries.splice(index, 0, entry);
    if (flow.entries.length === 1) flow.stamp = lane.shares.counter(tenant);
    lane.size++;
    lane.costTokens += entry.costTokens;
    this.#waiting.set(entry.key, { model, flow, entry });
  }

  /** Undefined when it did not wait. What it is charged is charged before: the next of its flow then stands behind it. */
  remove(key: RequestKey): Waiting | undefined {
    const found = this.#waiting.get(key);
    if (found === undefined) return undefined;
    const { model, flow, entry } = found;
    const lane = this.#lane(model);
    this.#waiting.delete(key);
    const index = lowerBound(flow.entries, entry);
    assert(flow.entries[index] === entry, `request ${key} is not where it stands`);
    flow.entries.splice(index, 1);
    lane.size--;
    lane.costTokens = lane.size === 0 ? 0 : lane.costTokens - entry.costTokens;
    lane.shares.leave(entry.tenant);
    if (flow.entries.length === 0) lane.flows.delete(flow.name);
    else if (index === 0) flow.stamp = lane.shares.counter(flow.tenant);
    return entry;
  }

  /** Keys of a model's requests in the order in which they would be served if nobody else came, first first. */
  order(model: string): readonly RequestKey[] {
    const lane = this.#lanes.get(model);
    if (lane === undefined) return [];
    const all: { readonly key: RequestKey; readonly at: number; readonly entry: Waiting }[] = [];
    for (const flow of lane.flows.values()) {
      let at = keyOf(flow);
      for (const entry of flow.entries) {
        all.push({ key: entry.key, at, entry });
        at += entry.costTokens / entry.weight;
      }
    }
    all.sort((a, b) => (a.at === b.at ? compare(a.entry, b.entry) : a.at - b.at));
    return all.map(({ key }) => key);
  }

  /** What would be served before this request if nobody else came. */
  ahead(key: RequestKey): Backlog {
    const found = this.#waiting.get(key);
    if (found === undefined) return { count: 0, costTokens: 0 };
    const own = found.entry;
    let count = 0;
    let costTokens = 0;
    let at = keyOf(found.flow);
    for (const entry of found.flow.entries) {
      if (entry === own) break;
      count++;
      costTokens += entry.costTokens;
      at += entry.costTokens / entry.weight;
    }
    for (const flow of this.#lane(found.model).flows.values()) {
      if (flow === found.flow) continue;
      let other = keyOf(flow);
      for (const entry of flow.entries) {
        if (other > at || (other === at && compare(entry, own) > 0)) break;
        count++;
        costTokens += entry.costTokens;
        other += entry.costTokens / entry.weight;
      }
    }
    return { count, costTokens };
  }

  /** A walk over a model's requests in their order; each must be removed or passed before the next. */
  turns(model: string): Turns {
    return new Turns(this.#lanes.get(model)?.flows ?? new Map());
  }

  /**
   * Who gives way when too many wait because this one came: of the tenant that has most waiting for its weight the one that would be served last, or
   * the newcomer where that is its tenant. Nobody who was served before gives way.
   */
  whoGivesWay(newcomer: RequestKey): RequestKey {
    const amounts = new Map<string, number>();
    for (const { flow, entry } of this.#waiting.values()) {
      if (!flow.isReturning) amounts.set(entry.tenant, (amounts.get(entry.tenant) ?? 0) + 1 / entry.weight);
    }
    let largest = this.#waiting.get(newcomer)?.entry.tenant ?? "";
    const own = largest;
    for (const [name, amount] of amounts) if (amount > (amounts.get(largest) ?? 0)) largest = name;
    if (largest === own) return newcomer;
    let last: Waiting | undefined;
    for (const { flow, entry } of this.#waiting.values()) {
      if (entry.tenant !== largest || flow.isReturning || entry !== flow.entries.at(-1)) continue;
      if (last === undefined || isLater(entry, last)) last = entry;
    }
    return last?.key ?? newcomer;
  }

  checkInvariants(): void {
    let size = 0;
    for (const [model, lane] of this.#lanes) {
      const waiting = new Map<string, number>();
      let laneSize = 0;
      for (const flow of lane.flows.values()) {
        assert(flow.entries.length > 0, `a flow of ${model} is empty and kept`);
        laneSize += flow.entries.length;
        flow.entries.forEach((entry, index) => {
          const before = flow.entries[index - 1];
          assert(before === undefined || compare(before, entry) < 0, `${model} is out of order at ${entry.key}`);
          assert(this.#waiting.get(entry.key)?.entry === entry, `request ${entry.key} is not found by its key`);
          waiting.set(entry.tenant, (waiting.get(entry.tenant) ?? 0) + 1);
        });
      }
      assert(lane.size === laneSize, `the lane of ${model} counts ${lane.size} and holds ${laneSize}`);
      lane.shares.checkInvariants(waiting);
      size += laneSize;
    }
    assert(size === this.#waiting.size, `the queue counts ${this.#waiting.size} and holds ${size}`);
  }

  #lane(model: string): Lane {
    let lane = this.#lanes.get(model);
    if (lane === undefined) {
      lane = { flows: new Map(), shares: new TenantShares(), size: 0, costTokens: 0 };
      this.#lanes.set(model, lane);
    }
    return lane;
  }
}

/** One walk over the flows of a model while requests leave them. */
export class Turns {
  readonly #flows: ReadonlyMap<string, Flow>;
  /** Requests passed, at the head of their flows. */
  readonly #passed = new Map<Flow, number>();
  #current: Flow | undefined;

  constructor(flows: ReadonlyMap<string, Flow>) {
    this.#flows = flows;
  }

  /** Whose turn it is; undefined when everybody had theirs. */
  next(): RequestKey | undefined {
    let best: { readonly flow: Flow; readonly entry: Waiting; readonly at: number } | undefined;
    for (const flow of this.#flows.values()) {
      const entry = flow.entries[this.#passed.get(flow) ?? 0];
      if (entry === undefined) continue;
      const at = keyOf(flow);
      if (best === undefined || at < best.at || (at === best.at && compare(entry, best.entry) < 0)) {
        best = { flow, entry, at };
      }
    }
    this.#current = best?.flow;
    return best?.entry.key;
  }

  /** Whose turn it was stays, and does not hold up the others. */
  pass(): void {
    if (this.#current !== undefined) this.#passed.set(this.#current, (this.#passed.get(this.#current) ?? 0) + 1);
  }
}

/** Smaller is served first. */
function keyOf(flow: Flow): number {
  return flow.isReturning ? Number.NEGATIVE_INFINITY : flow.stamp + CLASS_OFFSET_TOKENS[flow.serviceClass];
}

/** Within a flow, and among flows whose counters are equal: a total order, since keys differ. */
function compare(a: Waiting, b: Waiting): number {
  if (a.isReturning && b.isReturning) return a.key - b.key;
  return a.priority - b.priority || a.deadline - b.deadline || a.key - b.key;
}

/** Index of the first entry that does not go before this one. */
function lowerBound(entries: readonly Waiting[], entry: Waiting): number {
  let low = 0;
  let high = entries.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (compare(entries[middle] as Waiting, entry) < 0) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Of two that are the last ones of their classes. */
function isLater(a: Waiting, b: Waiting): boolean {
  const distance = CLASS_OFFSET_TOKENS[a.serviceClass] - CLASS_OFFSET_TOKENS[b.serviceClass];
  return distance > 0 || (distance === 0 && compare(a, b) > 0);
}
