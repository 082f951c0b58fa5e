import { EventEmitter } from "node:events";
import { create } from "@bufbuild/protobuf";
import { Metadata } from "@grpc/grpc-js";
import {
  addNanos,
  type BlockId,
  KvasirError,
  nanosFromMs,
  RecentTimes,
  type SchedulerEvent,
  type SequenceId,
  TransferBook,
} from "@kvasir/core";
import {
  DescribeResponseSchema,
  type FetchRequest,
  FetchResponseSchema,
  KvDtype,
  KvLayoutSchema,
  KvSourceSchema,
  TicketSchema,
} from "@kvasir/proto";
import { expect, test } from "vitest";
import { now } from "../clock.ts";
import type { Incarnation } from "../incarnation.ts";
import { profilesOf } from "../transfer/traffic.ts";
import type { LoanListener } from "./borrow.ts";
import { type FetchEnd, PrefixFetch } from "./prefix-fetch.ts";

const PROFILE = Uint8Array.of(7, 7);
const layout = create(KvLayoutSchema, { dtype: KvDtype.BF16, blockSize: 32, shardCount: 1 });
const speeds = { encodeBytesPerSecond: 4e8, decodeBytesPerSecond: 4e8 };
const description = create(DescribeResponseSchema, {
  kvBytesPerToken: 20_000,
  codecProfiles: [
    {
      id: PROFILE,
      levels: [
        { name: "raw", ratio: 1, kl: 0 },
        { name: "lossless", ratio: 1.5, kl: 0, ...speeds },
        { name: "near", ratio: 9, kl: 0.001, ...speeds },
      ],
    },
  ],
});

interface Call extends EventEmitter {
  readonly request: FetchRequest;
  isCancelled: boolean;
  /** Its fence is answered. */
  readonly fenced: PromiseWithResolvers<void>;
}

interface Setting {
  readonly tokenCount: number;
  readonly msPerToken: number;
  readonly accuracy?: "exact" | "near";
  readonly ttftMs?: number;
}

/** A fetch whose sidecar and scheduler are this test. */
function begin({ tokenCount, msPerToken, accuracy = "exact", ttftMs }: Setting) {
  const calls: Call[] = [];
  const events: SchedulerEvent[] = [];
  const progress = { plannedCount: 0, isComputing: false };
  const kernel = {
    fetch: (request: FetchRequest) => {
      const fenced = Promise.withResolvers<void>();
      const call = Object.assign(new EventEmitter(), { request, isCancelled: false, fenced, cancel: () => undefined });
      call.cancel = () => {
        call.isCancelled = true;
        call.emit("error", new KvasirError({ reason: "cancelled", message: "cancelled" }));
        return undefined;
      };
      calls.push(call);
      return call;
    },
    fence: (leaseId: Uint8Array) => calls.find(({ request }) => request.leaseId === leaseId)?.fenced.promise,
  };
  const engine = {
    apply: (event: SchedulerEvent) => events.push(event),
    scheduler: { progressOf: () => progress, options: { tokenBudget: 512 } },
    meter: { fearedPromptTokenMs: msPerToken, stepCost: () => undefined },
  };
  const transfers = new TransferBook(profilesOf(description));
  const fetchTails = new RecentTimes();
  const incarnation = { kernel, engine, layout, description, transfers, fetchTails } as unknown as Incarnation;
  let listener: LoanListener | undefined;
  const ends: FetchEnd[] = [];
  const fetch = new PrefixFetch({
    ...{
      incarnation,
      accuracy,
      sequenceId: 1 as SequenceId,
      blockIds: [0 as BlockId],
      tenantScope: new Uint8Array(16),
    },
    ...{ span: { begin: 0, end: tokenCount }, promptTokenCount: tokenCount + 1, metadata: new Metadata() },
    firstTokenBy: ttftMs === undefined ? undefined : addNanos(now(), nanosFromMs(ttftMs)),
    borrow: (told) => {
      listener = told;
      return { end: () => undefined };
    },
    fellBack: () => undefined,
    ended: (end) => ends.push(end),
  });
  const source = create(KvSourceSchema, { layout, shardAddresses: ["a:1"], codecProfileIds: [PROFILE] });
  listener?.lent({ ticket: create(TicketSchema), source, blockCount: tokenCount / 32, fromDisk: [] });
  const awaited = () => events.flatMap((event) => (event.kind === "KvAwaited" ? [event.span.begin] : [])).at(-1);
  const complete = (call: Call) => {
    const verifiedTokenEnd = call.request.tokenEnd;
    call.emit("data", create(FetchResponseSchema, { verifiedTokenEnd, complete: true, transferNanos: 1_000_000n }));
    call.emit("end");
  };
  return { fetch, calls, events, ends, progress, awaited, complete, fetchTails };
}

const tick = () => new Promise((resolve) => setTimeout(resolve, 40));
const spansOf = (calls: readonly Call[]) => calls.map(({ request }) => [request.tokenBegin, request.tokenEnd]);

test("what is taken back is computed once its pull writes no more, and not before", async () => {
  const { calls, progress, awaited, complete, ends, events, fetch } = begin({ tokenCount: 128, msPerToken: 1 });
  expect(spansOf(calls)).toEqual([
    [64, 128],
    [0, 64],
  ]);
  const [last, front] = calls as [Call, Call];
  await expect.poll(() => front.isCancelled).toBe(true);
  for (let times = 0; times < 3; times++) await tick();
  expect([awaited(), last.isCancelled, calls.length]).toEqual([0, false, 2]);
  front.fenced.resolve();
  await expect.poll(awaited).toBe(64);
  complete(last);
  last.fenced.resolve();
  progress.plannedCount = 64;
  fetch.wake();
  await expect.poll(() => ends).toMatchObject([{ tokenCount: 64, failure: "late", approximateFrom: undefined }]);
  expect(events.at(-1)).toMatchObject({ kind: "KvFetched", spans: [{ begin: 64, end: 128 }] });
});

test("a denser pull begins once the one before writes no more; one that is then taken back does not begin at all", async () => {
  const slowDevice = { tokenCount: 128, accuracy: "near" as const, msPerToken: 1e4, ttftMs: 300 };
  const denser = begin(slowDevice);
  expect(denser.calls.map(({ request }) => request.levels)).toEqual([[], []]);
  await expect.poll(() => denser.calls.some(({ isCancelled }) => isCancelled)).toBe(true);
  await tick();
  expect(denser.calls).toHaveLength(2);
  for (const call of denser.calls) call.fenced.resolve();
  await expect.poll(() => denser.calls.length).toBeGreaterThan(2);
  expect(denser.calls[2]?.request.levels).toMatchObject([{ level: 2 }]);
  const again = denser.calls[2]?.request;
  expect(denser.calls.slice(0, 2).map(({ request }) => request.tokenBegin)).toContain(again?.tokenBegin);
  denser.fetch.stop();
  for (const call of denser.calls) call.fenced.resolve();
  await expect.poll(() => denser.ends).toMatchObject([{ failure: "cancelled" }]);

  // The device is quick enough to come to what is stopped before it is fenced.
  const taken = begin({ ...slowDevice, msPerToken: 1.2, ttftMs: 110 });
  const [last, front] = taken.calls as [Call, Call];
  await expect.poll(() => front.isCancelled).toBe(true);
  for (let times = 0; times < 4; times++) await tick();
  expect([taken.calls.length, taken.awaited()]).toEqual([2, 0]);
  front.fenced.resolve();
  await expect.poll(taken.awaited).toBe(64);
  expect(taken.calls).toHaveLength(2);
  taken.fetch.stop();
  last.fenced.resolve();
  await expect.poll(() => taken.ends).toMatchObject([{ tokenCount: 0, failure: "cancelled" }]);
});

test("what has arrived in front of what is taken back is not computed", async () => {
  const { calls, events, complete, ends, fetch } = begin({ tokenCount: 512, msPerToken: 1 });
  const [last] = calls as [Call];
  expect([last.request.tokenBegin, last.request.tokenEnd]).toEqual([384, 512]);
  // All but the first call comes; each that does makes room for another.
  for (let index = 1; index < calls.length; index++) complete(calls[index] as Call);
  expect(calls.at(-1)?.request.tokenBegin).toBe(0);
  for (const call of calls) call.fenced.resolve();
  const taken = { kind: "KvAwaited", span: { begin: 448, end: 512 }, arrived: [{ begin: 0, end: 384 }] };
  await expect.poll(() => events).toContainEqual({ ...taken, sequenceId: 1, isApproximate: false });
  fetch.stop();
  for (const call of calls) call.fenced.resolve();
  await expect.poll(() => ends).toMatchObject([{ tokenCount: 384 }]);
  expect(events.at(-1)).toMatchObject({ kind: "KvFetched", spans: [] });
});

test("what passes between the last KV and the first token is measured, and not where a fetch did not end by itself", async () => {
  const { calls, complete, ends, fetch, fetchTails } = begin({ tokenCount: 64, msPerToken: 1 });
  fetch.firstToken();
  expect(fetchTails.feared).toBeUndefined();
  const [only] = calls as [Call];
  only.fenced.resolve();
  complete(only);
  await expect.poll(() => ends).toMatchObject([{ tokenCount: 64, failure: undefined }]);
  await tick();
  fetch.firstToken();
  expect(fetchTails.feared).toBeGreaterThan(30);
});

test("the end waits for everything that may still write", async () => {
  const { calls, ends, fetch } = begin({ tokenCount: 128, msPerToken: 1 });
  await expect.poll(() => calls[1]?.isCancelled).toBe(true);
  fetch.stop();
  calls[0]?.fenced.resolve();
  await tick();
  expect(ends).toEqual([]);
  calls[1]?.fenced.resolve();
  await expect.poll(() => ends).toMatchObject([{ failure: "cancelled" }]);
});
