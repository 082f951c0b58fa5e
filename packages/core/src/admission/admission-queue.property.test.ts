import fc from "fast-check";
import { expect, test } from "vitest";
import type { RequestKey } from "../placement/reservations.ts";
import { at } from "../placement/testing/world.ts";
import { AdmissionQueue, CLASS_OFFSET_TOKENS, SERVICE_CLASSES, type ServiceClass, type Waiting } from "./index.ts";

const MODEL = "m";
const COST_MAX = 4_000;

function waiting(key: number, tenant: string, costTokens: number, extra: Partial<Waiting> = {}): Waiting {
  return {
    key: key as RequestKey,
    tenant,
    weight: 1,
    serviceClass: "default",
    priority: 0,
    deadline: at(10_000 + key),
    costTokens,
    isReturning: false,
    ...extra,
  };
}

/** Serves whose turn it is, and charges its tenant. */
function serve(queue: AdmissionQueue): Waiting | undefined {
  const key = queue.turns(MODEL).next();
  if (key === undefined) return undefined;
  const tenant = tenants.get(key);
  queue.sharesOf(MODEL).charge(tenant?.tenant ?? "", tenant?.costTokens ?? 0);
  return queue.remove(key);
}

const tenants = new Map<RequestKey, Waiting>();

function add(queue: AdmissionQueue, entry: Waiting): void {
  tenants.set(entry.key, entry);
  queue.add(MODEL, entry);
}

type Operation =
  | { readonly kind: "add"; readonly tenant: number; readonly cost: number; readonly serviceClass: ServiceClass }
  | { readonly kind: "serve" }
  | { readonly kind: "cancel"; readonly index: number };

const operation: fc.Arbitrary<Operation> = fc.oneof(
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constant("add" as const),
      tenant: fc.nat(3),
      cost: fc.integer({ min: 1, max: COST_MAX }),
      serviceClass: fc.constantFrom(...SERVICE_CLASSES),
    }),
  },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("serve" as const) }) },
  fc.record({ kind: fc.constant("cancel" as const), index: fc.nat(50) }),
);

test("whatever comes, goes and is served: each is served at most once, whoever waits is served, and nothing is left of who left", () => {
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 150 }), (operations) => {
      const queue = new AdmissionQueue();
      const live = new Set<RequestKey>();
      let keys = 0;
      const take = () => {
        const served = serve(queue);
        expect(served === undefined).toBe(live.size === 0);
        if (served !== undefined) expect(live.delete(served.key)).toBe(true);
      };
      for (const each of operations) {
        if (each.kind === "add") {
          const key = ++keys as RequestKey;
          live.add(key);
          add(queue, waiting(key, `t${each.tenant}`, each.cost, { serviceClass: each.serviceClass }));
          const ahead = queue.ahead(key);
          expect(queue.order(MODEL).indexOf(key)).toBe(ahead.count);
        } else if (each.kind === "serve") take();
        else {
          const key = [...live][each.index];
          if (key === undefined) continue;
          live.delete(key);
          expect(queue.remove(key)?.key).toBe(key);
          expect(queue.remove(key)).toBeUndefined();
        }
        queue.checkInvariants();
        expect(queue.size).toBe(live.size);
      }
      while (live.size > 0) take();
      expect([queue.size, queue.backlogOf(MODEL), queue.turns(MODEL).next()]).toEqual([
        0,
        { count: 0, costTokens: 0 },
        undefined,
      ]);
      queue.checkInvariants();
    }),
    { numRuns: 300 },
  );
});

test("of tenants that always wait none is served more than two of the largest requests ahead of another for its weight, whatever their sizes", () => {
  const sizes = fc.array(fc.integer({ min: 1, max: COST_MAX }), { minLength: 40, maxLength: 40 });
  fc.assert(
    fc.property(
      fc.array(sizes, { minLength: 2, maxLength: 4 }),
      fc.array(fc.integer({ min: 1, max: 5 }), { minLength: 4, maxLength: 4 }),
      (costs, weights) => {
        const queue = new AdmissionQueue();
        const served = new Map<string, number>();
        let keys = 0;
        costs.forEach((list, tenant) => {
          for (const cost of list) add(queue, waiting(++keys, `t${tenant}`, cost, { weight: weights[tenant] ?? 1 }));
        });
        for (;;) {
          const entry = serve(queue);
          if (entry === undefined) break;
          served.set(entry.tenant, (served.get(entry.tenant) ?? 0) + entry.costTokens / entry.weight);
          const left = new Set(queue.order(MODEL).map((key) => tenants.get(key)?.tenant));
          if (left.size < costs.length) break; // From here on not all wait.
          const shares = costs.map((_, tenant) => served.get(`t${tenant}`) ?? 0);
          expect(Math.max(...shares) - Math.min(...shares)).toBeLessThanOrEqual(2 * COST_MAX);
        }
      },
    ),
    { numRuns: 100 },
  );
});

test("nobody starves behind a flood of more urgent classes: others get at most the distance between the classes and one request each first", () => {
  fc.assert(
    fc.property(
      fc.constantFrom(...SERVICE_CLASSES),
      fc.boolean(),
      fc.integer({ min: 100, max: COST_MAX }),
      (serviceClass, isOwnFlood, cost) => {
        const queue = new AdmissionQueue();
        let keys = 0;
        const flood = () => add(queue, waiting(++keys, isOwnFlood ? "a" : "b", cost, { serviceClass: "priority" }));
        for (let i = 0; i < 3; i++) flood();
        add(queue, waiting(++keys, "a", cost, { serviceClass }));
        const key = keys as RequestKey;
        let before = 0;
        while (before < 1e6) {
          const entry = serve(queue);
          if (entry?.key === key) break;
          before += cost;
          flood();
        }
        const distance = CLASS_OFFSET_TOKENS[serviceClass] - CLASS_OFFSET_TOKENS.priority;
        expect(before).toBeLessThanOrEqual(distance + 5 * cost);
      },
    ),
    { numRuns: 60 },
  );
});

test("within a tenant and class: priority, then deadline, then arrival; who lost a worker goes before everybody", () => {
  const queue = new AdmissionQueue();
  add(queue, waiting(1, "a", 100));
  add(queue, waiting(2, "a", 100, { deadline: at(500) }));
  add(queue, waiting(3, "a", 100, { priority: -1, deadline: at(90_000) }));
  add(queue, waiting(4, "b", 1, { isReturning: true }));
  add(queue, waiting(5, "a", 100));
  expect(queue.order(MODEL)).toEqual([4, 3, 2, 1, 5]);
  const turns = queue.turns(MODEL);
  expect(turns.next()).toBe(4);
  turns.pass();
  expect(turns.next()).toBe(3);
  queue.remove(3 as RequestKey);
  expect(turns.next()).toBe(2);
});

test("when too many wait, the tenant that has most waiting gives way, with what it would be served last", () => {
  const queue = new AdmissionQueue();
  for (const key of [1, 2, 3]) add(queue, waiting(key, "flood", 10));
  add(queue, waiting(4, "flood", 10, { serviceClass: "flex" }));
  add(queue, waiting(5, "flood", 10, { isReturning: true }));
  add(queue, waiting(6, "quiet", 10));
  expect(queue.whoGivesWay(6 as RequestKey)).toBe(4);
  queue.remove(4 as RequestKey);
  expect(queue.whoGivesWay(6 as RequestKey)).toBe(3);
  add(queue, waiting(7, "flood", 10));
  expect(queue.whoGivesWay(7 as RequestKey)).toBe(7);
  add(queue, waiting(8, "heavy", 10, { weight: 10 }));
  add(queue, waiting(9, "heavy", 10, { weight: 10 }));
  expect(queue.whoGivesWay(6 as RequestKey)).toBe(7);
});
