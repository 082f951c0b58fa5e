import { expect, test } from "vitest";
import type { SimulationSpec } from "./cluster-spec.ts";
import { DEVICE_PROFILES, type DeviceProfile } from "./device-profile.ts";
import { simulate } from "./simulation.ts";
import { summarize } from "./summary.ts";
import { a100, chat, conversationTrace, poissonTrace } from "./testing/worlds.ts";

// Workers that die, lie about their load or are slow, and a burst of 67 requests: simulation.test.ts.

const OBJECTIVE = { ttftMs: 2_000, tbtMs: 100 };

test("a router is killed: what runs goes on, the next one serves who waited within the time of taking over, and nobody is placed twice", () => {
  const trace = poissonTrace(6, 240, 8, chat);
  const routerFaults = [{ atMs: 15_000, takeOverMs: 1_500 }];
  const { requests } = simulate(a100({ mixed: 4 }, { routerFaults }), trace);
  expect(requests.map(({ outcome }) => outcome)).toEqual(requests.map(() => "finished"));
  expect(requests.every(({ tokenCount, trace: { outputTokenCount } }) => tokenCount === outputTokenCount)).toBe(true);
  expect(requests.every(({ attemptCount }) => attemptCount === 1)).toBe(true);
  const inTheGap = requests.filter(({ trace: { arrivalMs } }) => arrivalMs > 15_000 && arrivalMs < 16_500);
  expect(inTheGap.length).toBeGreaterThan(3);
  for (const { placedAt = 0 } of inTheGap) {
    expect(placedAt / 1e6).toBeGreaterThanOrEqual(16_500);
    expect(placedAt / 1e6).toBeLessThan(16_500 + 200);
  }
});

test("a router is killed and a worker soon after: requests that the new router never heard of are placed again by it", () => {
  const spec = a100(
    { mixed: 4 },
    {
      routerFaults: [{ atMs: 15_000, takeOverMs: 1_000 }],
      faults: [{ atMs: 16_200, workerIndex: 2, restartAfterMs: 4_000 }],
    },
  );
  const { requests, workers } = simulate(spec, poissonTrace(6, 240, 9, chat));
  expect(requests.map(({ outcome }) => outcome)).toEqual(requests.map(() => "finished"));
  const twice = requests.filter(({ attemptCount }) => attemptCount > 1);
  expect(twice.some(({ trace: { arrivalMs } }) => arrivalMs < 15_000)).toBe(true);
  for (const { scheduler } of workers) scheduler.checkInvariants();
});

test("a standby that takes over knows the caches: conversations go on where their KV is", () => {
  const trace = conversationTrace(5, 400, 3);
  const reuse = (routerFaults: { atMs: number; takeOverMs: number }[]) =>
    summarize(simulate(a100({ mixed: 4 }, { routerFaults, objectives: OBJECTIVE }), trace), OBJECTIVE).reuse;
  const undisturbed = reuse([]);
  expect(undisturbed).toBeGreaterThan(0.4);
  expect(reuse([{ atMs: 20_000, takeOverMs: 500 }])).toBeGreaterThan(0.9 * undisturbed);
});

test("cache events are lost: each gap brings a snapshot, and caches are followed nearly as well as without", () => {
  const trace = conversationTrace(5, 400, 4);
  const run = (cacheEventLoss: number) => {
    const quirks = [0, 1, 2, 3].map((workerIndex) => ({ workerIndex, cacheEventLoss }));
    return simulate(a100({ mixed: 4 }, { quirks, objectives: OBJECTIVE }), trace);
  };
  const whole = run(0);
  const lossy = run(0.2);
  expect([whole.snapshotCount, lossy.snapshotCount > 20]).toEqual([0, true]);
  const [wholeReuse, lossyReuse] = [whole, lossy].map((result) => summarize(result, OBJECTIVE).reuse);
  expect(lossyReuse).toBeGreaterThan(0.9 * (wholeReuse ?? 1));
  expect(summarize(lossy, OBJECTIVE).finishedCount).toBe(400);
});

test("a stale holder says nothing of what it evicted: it is asked for what it has not, computes it, and nobody is wrong or late for it", () => {
  // Pools so small that conversations push each other out.
  const spec = a100({ mixed: 4 }, { objectives: OBJECTIVE });
  const profile = { ...spec.profile, kvTokenCapacity: 6_400 };
  const trace = conversationTrace(4, 400, 5);
  const run = (hidesRemovals: boolean) => {
    const quirks = [{ workerIndex: 0, hidesRemovals }];
    const result = simulate({ ...spec, profile, quirks }, trace);
    const onHolder = result.requests.filter(
      ({ decision }) => decision?.candidates[0].decode.facts.workerId === "m0000",
    );
    const believed = onHolder.reduce(
      (sum, { trace: { promptTokenCount }, decision }) =>
        sum + promptTokenCount - (decision?.candidates[0].uncachedTokenCount ?? promptTokenCount),
      0,
    );
    const found = onHolder.reduce((sum, { cachedTokenCount }) => sum + cachedTokenCount, 0);
    return { summary: summarize(result, OBJECTIVE), believed, found };
  };
  const stale = run(true);
  const honest = run(false);
  expect(stale.found).toBeLessThan(0.8 * stale.believed);
  expect(honest.found).toBeGreaterThan(0.9 * honest.believed);
  expect(stale.summary.failedCount).toBe(0);
  expect(stale.summary.attainment).toBeGreaterThan(honest.summary.attainment - 0.03);
});

test("a store keeps what workers evict: prompts are fetched from it, and first tokens come sooner", () => {
  const trace = conversationTrace(4, 300, 7);
  const spec = a100({ prefill: 2, decode: 2 });
  // Grouped queries: a block's KV comes quicker than it is computed.
  const profile = { ...(DEVICE_PROFILES["h100-8b"] as DeviceProfile), kvTokenCapacity: 6_400 };
  const store = {
    memoryBytes: 8e9,
    diskBytes: 40e9,
    diskBytesPerSecond: 3e9,
    link: { bytesPerSecond: 12.5e9, latencyMs: 0.2 },
  };
  const run = (stores: (typeof store)[]) => {
    const result = simulate({ ...spec, profile, stores }, trace);
    for (const { scheduler } of result.workers) scheduler.checkInvariants();
    const fetched = result.requests.reduce((sum, { fetchedTokenCount }) => sum + fetchedTokenCount, 0);
    return { ...summarize(result, OBJECTIVE), fetched };
  };
  const without = run([]);
  const stored = run([store]);
  expect(stored.finishedCount).toBe(300);
  expect(stored.fetched).toBeGreaterThan(50_000);
  expect(stored.reuse).toBeGreaterThan(1.5 * without.reuse);
  expect(stored.meanTtftMs).toBeLessThan(0.9 * without.meanTtftMs);
});

test("a prefill worker's link turns out to be slow: where its receivers measure it and tell, fewer answers are late for it", () => {
  const trace = poissonTrace(9, 800, 10, chat);
  const quirks = [{ workerIndex: 0, link: { bytesPerSecond: 0.5e9, latencyMs: 0.1 } }];
  const run = (measuresLinks: boolean, slow: SimulationSpec["quirks"] = quirks) => {
    const spec = a100({ prefill: 3, decode: 3 }, { quirks: slow, measuresLinks, objectives: OBJECTIVE });
    const result = simulate(spec, trace);
    for (const { scheduler } of result.workers) scheduler.checkInvariants();
    return { attainment: summarize(result, OBJECTIVE).attainment, requests: result.requests };
  };
  const [blind, seeing] = [run(false), run(true)];
  expect(blind.attainment).toBeLessThan(0.93);
  expect(seeing.attainment).toBeGreaterThan(0.98);
  const rates = ({ requests }: typeof blind) => requests.map(({ decision }) => decision?.candidates[0].handOver?.rate);
  expect(rates(blind).some((rate) => rate?.ageMs !== undefined)).toBe(false);
  expect(rates(seeing).some((rate) => rate?.ageMs !== undefined && rate.bytesPerSecond < 1e9)).toBe(true);
  // Among links that are as they are thought to be, knowing it costs nobody anything.
  expect(run(true, []).attainment).toBeGreaterThanOrEqual(run(false, []).attainment - 0.005);
});
