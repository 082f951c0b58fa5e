import { expect, test } from "vitest";
import type { Instant } from "../time.ts";
import { type BlockRun, PullQueue, runsOf } from "./pull-queue.ts";

const OPTIONS = {
  blockBytes: 100,
  bytesPerSecond: 1_000,
  runBlockMax: 4,
  blockMax: 8,
  perSourceMax: 1,
  waitingBlockMax: 20,
};
const at = (ms: number) => (ms * 1e6) as Instant;
const run = (sourceId: string, blockCount: number, firstBlock = 0): BlockRun => ({
  ...{ sourceId, tenant: "t", firstBlock },
  keys: Array.from({ length: blockCount }, (_, index) => Uint8Array.of(firstBlock + index)),
});
const shape = (pull: BlockRun | undefined) => pull && [pull.sourceId, pull.firstBlock, pull.keys.length];

test("a long run is pulled in parts, one after the other from one source, and others do not wait for it", () => {
  const queue = new PullQueue(OPTIONS);
  queue.add(run("a", 6));
  queue.add(run("b", 3, 7));
  const first = queue.next(at(0));
  expect(shape(first)).toEqual(["a", 0, 4]);
  expect(shape(queue.next(at(0)))).toEqual(["b", 7, 3]);
  expect(queue.next(at(0))).toBeUndefined();
  if (first) queue.ended(first);
  expect(shape(queue.next(at(0)))).toEqual(["a", 4, 2]);
  expect([queue.waitingBlockCount, queue.blockCount]).toEqual([0, 5]);
});

test("a second's bytes may go at once, then the rate holds", () => {
  const queue = new PullQueue({ ...OPTIONS, perSourceMax: 100, blockMax: 100, waitingBlockMax: 100 });
  queue.add(run("a", 40));
  const taken = [];
  for (let pull = queue.next(at(0)); pull; pull = queue.next(at(0))) taken.push(pull.keys.length);
  expect(taken).toEqual([4, 4, 4]);
  expect(queue.nextAt(at(0))).toBeGreaterThanOrEqual(at(200));
  expect(queue.next(at(199))).toBeUndefined();
  expect(queue.next(at(201))).toBeDefined();
});

test("what there is no room for is refused, and what waits for a source that is gone is taken out", () => {
  const queue = new PullQueue(OPTIONS);
  expect(queue.add(run("a", 15))).toEqual([]);
  expect(queue.add(run("b", 8)).length).toBe(3);
  expect(queue.sourceGone("a").length).toBe(4);
  expect(queue.waitingBlockCount).toBe(5);
});

test("blocks of a text fall into runs where one is missing", () => {
  expect(runsOf([3, 4, 5, 9, 10, 2], (position) => position)).toEqual([[3, 4, 5], [9, 10], [2]]);
});
