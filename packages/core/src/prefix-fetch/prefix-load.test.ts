import fc from "fast-check";
import { expect, test } from "vitest";
import { type CodecLevelFacts, type LinkSpeed, TransferBook } from "../codec-level/index.ts";
import type { Instant } from "../time.ts";
import { PrefixLoad } from "./prefix-load.ts";
import { type LoadWorld, type SimulatedLoadFacts, simulateLoad } from "./testing/simulated-load.ts";

const level = (name: string, accuracy: CodecLevelFacts["accuracy"], ratio: number, speed: number): CodecLevelFacts => ({
  ...{ name, accuracy, ratio },
  encodeBytesPerMs: speed,
  decodeBytesPerMs: speed,
});
const RAW = level("raw", "exact", 1, Number.POSITIVE_INFINITY);
const PROFILE = {
  id: "a1",
  levels: [RAW, level("lossless", "exact", 1.5, 5e5), level("dense", "near", 9, 2e5), level("fast", "fast", 6, 1e6)],
};
const SOURCE = { peer: "p", peerProfileIds: ["a1"], isWhole: true };
const BYTES_PER_TOKEN = 20_000;
const BLOCK_SIZE = 32;

/** A book that has seen the link at so many tokens' raw KV a millisecond; undefined: never. */
function bookOf(tokensPerMs: number | undefined): TransferBook {
  const book = new TransferBook([PROFILE]);
  if (tokensPerMs === undefined) return book;
  const traffic = { wireBytes: 1e6, rawBytes: 1e6, encodeMs: 0, decodeMs: 0 };
  book.begin("p");
  book.observe("p", undefined, new Map([[0, traffic]]), 1e6 / (tokensPerMs * BYTES_PER_TOKEN), 0 as Instant);
  book.end("p");
  return book;
}

interface Case extends Partial<SimulatedLoadFacts> {
  readonly computePerMs: number;
  /** Tokens' raw KV that the link carries in each millisecond. */
  readonly link: (ms: number) => number;
  readonly world?: Partial<LoadWorld>;
}

function run({ computePerMs, link, world, ...change }: Case, untilMs?: number) {
  const facts = {
    ...{ tokenCount: 3_200, blockSize: BLOCK_SIZE, bytesPerToken: BYTES_PER_TOKEN, budget: "exact" as const },
    ...{ deadlineMs: undefined, book: bookOf(undefined), computeMsPerToken: () => 1 / computePerMs, source: SOURCE },
    ...change,
  };
  const levels = PROFILE.levels;
  const rate = (ms: number) => link(ms) * BYTES_PER_TOKEN;
  return simulateLoad({ rate, levels, computeMsPerToken: 1 / computePerMs, ...world }, facts, untilMs);
}

test("what a quick link brings leaves the device to others", () => {
  const { ms, fetchedTokenCount, levels, isLate } = run({ computePerMs: 1, link: () => 200 });
  expect([fetchedTokenCount, [...levels], isLate]).toEqual([3_200, [[0, 3_200]], false]);
  expect(ms).toBeLessThan(40);
});

test("over a steady link it takes about as long as both together need, and never longer than the better one alone", () => {
  for (const computePerMs of [0.5, 1, 2, 4]) {
    for (const linkPerMs of [0.5, 1, 2, 4, 20]) {
      const lossless = linkPerMs * 1.5;
      const { ms } = run({ computePerMs, link: () => linkPerMs, book: bookOf(linkPerMs) });
      // What is left at the end of one is a step or a chunk of the other.
      const slackMs = 60 + 64 / computePerMs + (2 * 64) / linkPerMs;
      expect(ms).toBeLessThanOrEqual((3_200 / (computePerMs + lossless)) * 1.15 + slackMs);
      expect(ms).toBeLessThanOrEqual(3_200 / Math.max(computePerMs, lossless) + slackMs);
    }
  }
});

test("a holder that never answers costs its grace; one that answers late is still asked for what is left", () => {
  const never = run({ computePerMs: 4, link: () => 100, world: { answerMs: Number.POSITIVE_INFINITY } });
  expect([never.fetchedTokenCount, never.isLate]).toEqual([0, true]);
  expect(never.ms).toBeLessThanOrEqual(800 + 30 + 100);
  const late = run({ computePerMs: 4, link: () => 100, world: { answerMs: 200 } });
  expect(late.fetchedTokenCount).toBeGreaterThan(2_000);
  expect(late.fetchedTokenCount).toBeLessThan(3_200);
});

test("a link that falls silent is left: what has come stays, and the rest is computed", () => {
  const { ms, fetchedTokenCount, takenBackCount, isLate } = run({
    ...{ computePerMs: 4, link: (ms: number) => (ms < 60 ? 20 : 0), book: bookOf(20) },
  });
  expect(fetchedTokenCount).toBeGreaterThan(600);
  expect(takenBackCount).toBeGreaterThan(0);
  expect(isLate).toBe(true);
  expect(ms).toBeLessThanOrEqual(3_200 / 4 + 200);
});

test("what was begun raw on a link that then grew slow is asked for again at a level that the request allows", () => {
  const slow = { computePerMs: 0.2, link: (ms: number) => (ms < 5 ? 60 : 0.6), book: bookOf(60), deadlineMs: 400 };
  const near = run({ ...slow, tokenCount: 1_024, budget: "near" });
  expect(near.denserCount).toBeGreaterThan(0);
  expect(near.levels.get(2) ?? 0).toBeGreaterThan(0);
  const exact = run({ ...slow, tokenCount: 1_024 });
  expect([...exact.levels.keys()].every((level) => level < 2)).toBe(true);
  expect(near.ms).toBeLessThan(exact.ms);
});

test("a link that was slow once is tried again after some loads that did without it", () => {
  const book = bookOf(0.001);
  const counts = Array.from({ length: 60 }, () => run({ computePerMs: 1, link: () => 50, book }).fetchedTokenCount);
  expect(counts[0]).toBe(0);
  expect(counts.at(-1)).toBeGreaterThan(2_000);
});

test("what is lent is all that is asked for, and nothing is asked before", () => {
  const span = { begin: 96, end: 96 + 3_200 };
  const common = { bytesPerToken: BYTES_PER_TOKEN, deadlineMs: undefined, computeMsPerToken: () => 1 };
  const load = new PrefixLoad({ span, blockSize: BLOCK_SIZE, budget: "exact", book: bookOf(undefined), ...common });
  expect(load.next(0)).toBeUndefined();
  load.lent(SOURCE, 96 + 320);
  const pulls = [load.next(1), load.next(1)];
  expect(pulls).toMatchObject([
    { kind: "pull", begin: 352, end: 416, level: { name: "raw" } },
    { kind: "pull", begin: 288, end: 352 },
  ]);
  expect(load.next(1)).toBeUndefined();
});

const conditions = fc.record({
  blockCount: fc.integer({ min: 1, max: 100 }),
  computePerMs: fc.constantFrom(1, 5, 30),
  /** Tokens a millisecond that the link carries in each of these stretches of 50 ms; the last one stays. */
  link: fc.array(fc.constantFrom(0, 0.2, 1, 5, 50), { minLength: 1, maxLength: 8 }),
  answerMs: fc.constantFrom(0, 10, 100, Number.POSITIVE_INFINITY),
  fenceMs: fc.constantFrom(0, 1, 30),
  /** Whether others keep the device busy in each stretch of 100 ms; afterwards nobody does. */
  busy: fc.array(fc.boolean(), { maxLength: 8 }),
  seenPerMs: fc.constantFrom(undefined, 0.2, 5, 50),
  budget: fc.constantFrom("exact" as const, "near" as const, "fast" as const),
  deadlineMs: fc.constantFrom(undefined, 50, 200, 1_000, 10_000),
});

test("whatever link and device do, every token comes once, at a level that the request allows, and it costs little more than twice computing alone, or its deadline and that", () => {
  let [fetched, takenBack, denser] = [0, 0, 0];
  fc.assert(
    fc.property(
      conditions,
      ({ blockCount, computePerMs, link, answerMs, fenceMs, busy, seenPerMs, budget, deadlineMs }) => {
        const tokenCount = blockCount * BLOCK_SIZE;
        const ended = run({
          ...{ computePerMs, tokenCount, budget, deadlineMs, book: bookOf(seenPerMs) },
          link: (ms) => link[Math.min(Math.floor(ms / 50), link.length - 1)] ?? 0,
          world: { answerMs, fenceMs, isBusy: (ms) => busy[Math.floor(ms / 100)] ?? false },
        });
        fetched += ended.fetchedTokenCount;
        takenBack += ended.takenBackCount;
        denser += ended.denserCount;
        const allowed = { exact: [0, 1], near: [0, 1, 2], fast: [0, 1, 2, 3] }[budget];
        for (const level of ended.levels.keys()) expect(allowed).toContain(level);
        const aloneMs = tokenCount / computePerMs;
        // What is in time is waited for.
        expect(ended.ms).toBeLessThanOrEqual(Math.max(aloneMs, deadlineMs ?? 0) + aloneMs + 100 * busy.length + 250);
      },
    ),
    { numRuns: 300 },
  );
  expect([fetched, takenBack, denser].every((count) => count > 0)).toBe(true);
});

test("an estimate grows only where there is one", () => {
  const book = bookOf(undefined);
  book.passedOver("p");
  expect(book.linkOf("p")).toBeUndefined();
  const seen = bookOf(1);
  const before = (seen.linkOf("p") as LinkSpeed).usual;
  seen.passedOver("p");
  expect((seen.linkOf("p") as LinkSpeed).usual).toBeGreaterThan(before);
});
