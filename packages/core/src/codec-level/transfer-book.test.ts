import fc from "fast-check";
import { expect, test } from "vitest";
import type { Instant } from "../time.ts";
import {
  accuracyOf,
  type CodecLevelFacts,
  KV_ACCURACIES,
  type LevelQuestion,
  type TrafficFacts,
  TransferBook,
} from "./index.ts";

const level = (name: string, accuracy: CodecLevelFacts["accuracy"], ratio: number, speed: number): CodecLevelFacts => ({
  ...{ name, accuracy, ratio },
  encodeBytesPerMs: speed,
  decodeBytesPerMs: speed,
});
const RAW = level("raw", "exact", 1, Number.POSITIVE_INFINITY);
const BUILTIN = { id: "b0", levels: [RAW, level("lossless", "exact", 1.3, 4e5)] };
const OWN = {
  id: "a1",
  levels: [
    RAW,
    level("lossless", "exact", 1.5, 5e5),
    level("near", "near", 5, 3e5),
    undefined,
    level("fast", "fast", 9, 2e5),
  ],
};
const MiB = 2 ** 20;
const START = 0 as Instant;

const question = (changes: Partial<LevelQuestion> = {}): LevelQuestion => ({
  ...{ peer: "p", peerProfileIds: ["b0", "a1"], isWhole: true, tokenBegin: 0, tokenEnd: 1_000, bytesPerToken: 20_000 },
  ...{ budget: "exact", deadlineMs: 100 },
  ...changes,
});
/** A book that has seen its link at so many bytes a millisecond. */
const seen = (bytesPerMs: number) => {
  const book = new TransferBook([BUILTIN, OWN]);
  book.begin("p");
  book.observe("p", undefined, new Map([[0, raw(MiB)]]), MiB / bytesPerMs, START);
  book.end("p");
  return book;
};
const raw = (bytes: number): TrafficFacts => ({ wireBytes: bytes, rawBytes: bytes, encodeMs: 0, decodeMs: 0 });
const names = (book: TransferBook, asked: LevelQuestion) =>
  book.choose(asked).spans.map(({ name, tokenEnd }) => `${name} ${tokenEnd}`);

test("a link of which nothing is known carries raw KV, and so does a fast one", () => {
  expect(new TransferBook([BUILTIN, OWN]).choose(question())).toMatchObject({
    profileId: undefined,
    spans: [{ tokenEnd: 1_000, level: 0, name: "raw" }],
    approximateTokenCount: 0,
  });
  expect(names(seen(1e6), question({ budget: "fast" }))).toEqual(["raw 1000"]);
});

test("exact requests get lossless KV over a slow link, by the best profile that both sides have", () => {
  const book = seen(5e4);
  expect(book.choose(question())).toMatchObject({ profileId: "a1", approximateTokenCount: 0 });
  expect(names(book, question())).toEqual(["lossless 1000"]);
  expect(book.choose(question({ peerProfileIds: ["b0"] }))).toMatchObject({ profileId: "b0", spans: [{ level: 1 }] });
  expect(names(book, question({ peerProfileIds: [] }))).toEqual(["raw 1000"]);
  expect(names(book, question({ isWhole: false }))).toEqual(["raw 1000"]);
});

test("errors are for those that allow them, where the deadline asks, and at the end of the text", () => {
  const book = seen(1e5);
  // What is in time as it is takes nobody's processors.
  expect(names(book, question({ budget: "near", deadlineMs: 600 }))).toEqual(["raw 1000"]);
  expect(names(book, question({ budget: "near", deadlineMs: 420 }))).toEqual(["lossless 1000"]);
  // Half of the speed is feared after one transfer: 20 MB take 270 ms lossless and 100 near then.
  const choice = book.choose(question({ budget: "near", deadlineMs: 330 }));
  expect(choice.spans.map(({ name }) => name)).toEqual(["lossless", "near"]);
  expect(choice.approximateTokenCount).toBe(1_000 - (choice.spans[0]?.tokenEnd ?? 0));
  expect(names(book, question({ budget: "exact", deadlineMs: 100 }))).toEqual(["lossless 1000"]);
  // Less than 40 ms are not worth the processors.
  expect(names(book, question({ tokenEnd: 250, deadlineMs: 1 }))).toEqual(["raw 250"]);
  expect(names(seen(1e4), question({ budget: "fast", deadlineMs: 250 })).at(-1)).toBe("fast 1000");
});

test("transfers under way share the link", () => {
  const book = seen(1e5);
  expect(names(book, question())).toEqual(["lossless 1000"]);
  const alone = book.choose(question()).predictedMs;
  book.begin("p");
  expect(book.choose(question()).predictedMs).toBeGreaterThan(1.5 * alone);
  book.end("p");
  expect(book.choose(question()).predictedMs).toBe(alone);
});

test("what a request has under way goes first and shares the link with nobody, and what it shows of the link counts", () => {
  const book = seen(1e5);
  const compute = { msPerToken: 0.4, busyMs: 0 };
  const asked = question({ budget: "near", deadlineMs: 250, compute });
  const alone = book.choose(asked);
  book.begin("p");
  const underWay = { streamCount: 1, queuedBytes: 0, bytesPerMs: undefined };
  expect(book.choose({ ...asked, underWay })).toEqual(alone);
  const queued = book.choose({ ...asked, underWay: { ...underWay, queuedBytes: 8 * MiB } });
  expect([alone.approximateTokenCount, queued.approximateTokenCount]).toEqual([0, 488]);
  const slow = book.choose({ ...asked, underWay: { ...underWay, bytesPerMs: 1e4 } });
  expect(slow.computedTokenCount).toBe(512);
  expect(new Set(slow.spans.map(({ name }) => name))).toEqual(new Set(["near"]));
});

test("a link that varies is planned for as it may become", () => {
  const [steady, varying] = [
    [1e5, 1e5, 1e5, 1e5],
    [1e5, 1e4, 2e5, 1e5],
  ].map((speeds) => {
    const book = new TransferBook([BUILTIN, OWN]);
    for (const speed of speeds) {
      book.begin("p");
      book.observe("p", undefined, new Map([[0, raw(MiB)]]), MiB / speed, START);
      book.end("p");
    }
    return book;
  });
  const asked = question({ budget: "fast", deadlineMs: 300 });
  expect(names(steady as TransferBook, asked)).toEqual(["raw 1000"]);
  expect(names(varying as TransferBook, asked).at(-1)).toMatch(/^fast|^near/);
});

test("levels are used by what they were measured to do, and not at all where nobody measured", () => {
  const accuracies = [0, 0.0007, 0.0076, 0.2, -1].map((kl) => accuracyOf(2, kl));
  expect(accuracies).toEqual(["near", "near", "fast", undefined, undefined]);
  expect([accuracyOf(0, 0), accuracyOf(1, 0)]).toEqual(["exact", "exact"]);
});

test("what transfers took replaces what was announced", () => {
  const book = seen(1e5);
  const slow = { wireBytes: 15 * MiB, rawBytes: 20 * MiB, encodeMs: 2_000, decodeMs: 2_000 };
  for (let times = 0; times < 8; times++) {
    book.begin("p");
    book.observe("p", "a1", new Map([[1, slow]]), 2_100, START);
    book.end("p");
  }
  expect(names(book, question())).toEqual(["raw 1000"]);
});

test("spans are of whole chunks, few enough, end at the end, and never less exact than allowed", () => {
  fc.assert(
    fc.property(
      fc.record({
        tokenBegin: fc.integer({ min: 0, max: 200 }).map((blocks) => 32 * blocks),
        length: fc.integer({ min: 1, max: 100_000 }),
        budget: fc.constantFrom(...KV_ACCURACIES),
        deadlineMs: fc.option(fc.integer({ min: 1, max: 20_000 }), { nil: undefined }),
        speed: fc.integer({ min: 100, max: 1_000_000 }),
      }),
      ({ tokenBegin, length, budget, deadlineMs, speed }) => {
        const tokenEnd = tokenBegin + length;
        const choice = seen(speed).choose(question({ tokenBegin, tokenEnd, budget, deadlineMs }));
        expect(choice.spans.length).toBeLessThanOrEqual(64);
        expect(choice.spans.at(-1)?.tokenEnd).toBe(tokenEnd);
        let [begin, approximate] = [tokenBegin, 0];
        for (const { tokenEnd: end, level: index } of choice.spans) {
          expect(end > begin && (end % 64 === 0 || end === tokenEnd)).toBe(true);
          const accuracy = OWN.levels[index]?.accuracy ?? "exact";
          expect(KV_ACCURACIES.indexOf(accuracy)).toBeLessThanOrEqual(KV_ACCURACIES.indexOf(budget));
          if (accuracy !== "exact") approximate += end - begin;
          begin = end;
        }
        expect(choice.approximateTokenCount).toBe(approximate);
      },
    ),
    { numRuns: 500 },
  );
});

test("what was measured of links is told since a count of measurements, the newest first, as raw KV by what may be lost", () => {
  const book = seen(1_000);
  expect([book.measurementCount, book.measuredAfter(0)]).toEqual([
    1,
    // Before any choice nobody knows which levels are to be had from there.
    [{ source: "p", measuredAt: START, rates: { exact: 1_000, near: 1_000, fast: 1_000 } }],
  ]);
  book.choose(question());
  book.observe("q", undefined, new Map([[0, raw(MiB)]]), MiB / 2_000, 7 as Instant);
  const [newest, first] = book.measuredAfter(0);
  expect(newest).toMatchObject({ source: "q", measuredAt: 7, rates: { fast: 2_000 } });
  expect(first).toEqual({ source: "p", measuredAt: START, rates: { exact: 1_500, near: 5_000, fast: 9_000 } });
  expect(book.measuredAfter(1)).toEqual([newest]);
  // What tells nothing, and what is only thought, is no measurement.
  book.observe("p", undefined, new Map([[0, raw(100)]]), 1, START);
  book.passedOver("p");
  expect([book.measurementCount, book.measuredAfter(2)]).toEqual([2, []]);
});

test("of many links the newest are told", () => {
  const book = new TransferBook([]);
  for (let peer = 0; peer < 100; peer++) book.observe(`p${peer}`, undefined, new Map([[0, raw(MiB)]]), 1, START);
  expect(book.measuredAfter(0).map(({ source }) => source)).toEqual(
    Array.from({ length: 32 }, (_, index) => `p${99 - index}`),
  );
});
