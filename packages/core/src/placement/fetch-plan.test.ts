import fc from "fast-check";
import { expect, test } from "vitest";
import { type HeldPrefix, type Holding, isWorthFetching, LongestHoldings } from "./fetch-plan.ts";
import { assumedRates, LinkBelief } from "./link-belief.ts";
import { PREDICTION_DEFAULTS } from "./predict.ts";
import { at, attached } from "./testing/world.ts";

const OPTIONS = {
  ...{ ...PREDICTION_DEFAULTS, kvBytesPerSecond: 1e6, storeDiskBytesPerSecond: 1e5, handoverMs: 2 },
  kvRates: assumedRates(1e6),
};
const store: HeldPrefix = {
  ...{ holder: { facts: { workerId: "store", address: "a:1" }, epoch: 1 }, tokenEnd: 200, diskTokenCount: 0 },
  isStore: true,
};

/** 1,000 bytes a token: one takes 1 ms on the wire, and as given to compute. Who is asked, and the time. */
function choose(workerTokens: number, stored: readonly HeldPrefix[], tokensPerSecond: number, cachedTokenCount = 0) {
  const own = { worker: attached("m1"), cachedTokenCount };
  const holdings = new LongestHoldings([own, { worker: attached("m2"), cachedTokenCount: workerTokens }]);
  const plan = holdings.planFor(own, stored, msBeyond(tokensPerSecond), OPTIONS);
  return plan && isWorthFetching(plan) ? [plan.holder.facts.workerId, plan.fetchMs] : undefined;
}

const msBeyond = (tokensPerSecond: number) => (tokenCount: number) => ((300 - tokenCount) / tokensPerSecond) * 1_000;

test("who saves most is asked: the longer prefix, unless a disk is slower than computing", () => {
  expect(choose(100, [store], 100)).toEqual(["store", 202]);
  expect(choose(100, [{ ...store, diskTokenCount: 200 }], 100)).toEqual(["m2", 102]);
  expect(choose(200, [store], 100), "the first of equals").toEqual(["m2", 202]);
});

test("nobody is asked for what is there, or is computed as quickly", () => {
  expect(choose(100, [], 100, 100)).toBeUndefined();
  expect(choose(100, [], 1_000)).toBeUndefined();
});

test("blocks of another size or of other bits are not looked at", () => {
  const own = { worker: attached("m1"), cachedTokenCount: 0 };
  const others = [{ blockSize: 16 }, { exactFingerprint: "bb".repeat(16) }].map((facts, index) => ({
    worker: attached(`m${index + 2}`, {}, facts),
    cachedTokenCount: 128,
  }));
  expect(new LongestHoldings(others).planFor(own, [], () => 0, OPTIONS)).toBeUndefined();
});

const holding = (workerId: string, cachedTokenCount: number, waitingCount = 0): Holding => ({
  worker: attached(workerId, { waitingCount }, { transferAddress: `${workerId}:9` }),
  cachedTokenCount,
});
/** m1 has measured its links to these, in bytes a second of exact and of fast KV, just now. */
function measured(links: Readonly<Record<string, readonly [number, number]>>): LinkBelief {
  const belief = new LinkBelief(1e6);
  belief.told(
    "m1",
    Object.entries(links).map(([workerId, [exact, fast]]) => ({
      source: `${workerId}:9`,
      measuredAt: at(0),
      rates: { exact: exact / 1e3, near: exact / 1e3, fast: fast / 1e3 },
    })),
  );
  return belief;
}

test("where the link to the idlest holder is slow another one is asked, or the prompt is computed; with fast KV it may be fetched", () => {
  const own = holding("m1", 0);
  const two = [holding("m2", 200), holding("m3", 200, 3)];
  const asked = (
    links: Readonly<Record<string, readonly [number, number]>>,
    accuracy: "exact" | "fast" = "exact",
    holdings = two,
  ) => {
    const kvRates = measured(links).ratesFor(accuracy, at(0));
    const plan = new LongestHoldings([own, ...holdings]).planFor(own, [], msBeyond(500), { ...OPTIONS, kvRates });
    return plan && isWorthFetching(plan) ? [plan.holder.facts.workerId, Math.round(plan.fetchMs)] : undefined;
  };
  expect(asked({})).toEqual(["m2", 202]);
  expect(asked({ m2: [1e5, 1e6] })).toEqual(["m3", 202]);
  expect(asked({ m3: [4e6, 4e6] })).toEqual(["m3", 52]);
  const only = [holding("m2", 200)];
  expect(asked({ m2: [1e5, 1e6] }, "exact", only)).toBeUndefined();
  expect(asked({ m2: [1e5, 1e6] }, "fast", only)).toEqual(["m2", 202]);
});

test("of stores the one over the quicker link is asked, though another one has as much and comes first", () => {
  const stored = ["s1", "s2"].map((workerId): HeldPrefix => {
    const facts = { workerId, address: `${workerId}:1`, transferAddress: `${workerId}:9` };
    return { holder: { facts, epoch: 1 }, tokenEnd: 200, diskTokenCount: 0, isStore: true };
  });
  const plan = (links: Readonly<Record<string, readonly [number, number]>>) => {
    const kvRates = measured(links).ratesFor("exact", at(0));
    return new LongestHoldings([]).planFor(holding("m1", 0), stored, msBeyond(100), { ...OPTIONS, kvRates });
  };
  expect(plan({})?.holder.facts.workerId).toBe("s1");
  expect(plan({ s1: [5e5, 5e5] })).toMatchObject({ holder: { facts: { workerId: "s2" } }, rate: { ageMs: undefined } });
  expect(plan({ s2: [2e6, 2e6] })).toMatchObject({ holder: { facts: { workerId: "s2" } }, rate: { ageMs: 0 } });
});

test("a link that was measured to be quicker never makes the fetch over it longer, nor what is saved by the best fetch less", () => {
  const rate = fc.double({ min: 1e3, max: 1e9, noNaN: true });
  fc.assert(
    fc.property(rate, rate, rate, fc.nat(300_000), (one, other, third, ageMs) => {
      const own = holding("m1", 0);
      const plan = (bytesPerSecond: number, others: readonly Holding[]) => {
        const belief = measured({ m2: [bytesPerSecond, bytesPerSecond], m3: [third, third] });
        const options = { ...OPTIONS, kvRates: belief.ratesFor("exact", at(ageMs)) };
        return new LongestHoldings([own, holding("m2", 200), ...others]).planFor(own, [], msBeyond(500), options);
      };
      const [slow, quick] = [Math.min(one, other), Math.max(one, other)];
      expect(plan(quick, [])?.fetchMs).toBeLessThanOrEqual((plan(slow, [])?.fetchMs ?? 0) * (1 + 1e-9));
      const saved = (found: ReturnType<typeof plan>) => Math.max(0, found ? found.computeMs - found.fetchMs : 0);
      const others = [holding("m3", 160)];
      expect(saved(plan(quick, others))).toBeGreaterThanOrEqual(saved(plan(slow, others)) - 1e-6);
    }),
  );
});
