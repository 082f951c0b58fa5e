import { EventEmitter } from "node:events";
import { create } from "@bufbuild/protobuf";
import { Metadata } from "@grpc/grpc-js";
import { type BlockId, type KvAccuracy, KvasirError, TransferBook } from "@kvasir/core";
import {
  DescribeResponseSchema,
  type FetchRequest,
  FetchResponseSchema,
  KvDtype,
  KvLayoutSchema,
  RunTicketSchema,
} from "@kvasir/proto";
import { expect, test } from "vitest";
import { now } from "../clock.ts";
import type { Kernel } from "../kernel/kernel.ts";
import { KvFetch, type KvFetchFacts, type KvProgress } from "./kv-fetch.ts";
import { levelSourceOf, oneLevel, plannedLevels } from "./level-plan.ts";
import { profilesOf } from "./traffic.ts";

const PROFILE = Uint8Array.of(7, 7);
const BYTES_PER_TOKEN = 20_000;
const layout = create(KvLayoutSchema, { dtype: KvDtype.BF16, blockSize: 32, shardCount: 1 });
const speeds = { encodeBytesPerSecond: 4e8, decodeBytesPerSecond: 4e8 };
const description = create(DescribeResponseSchema, {
  kvBytesPerToken: BYTES_PER_TOKEN,
  codecProfiles: [
    {
      id: PROFILE,
      levels: [
        { name: "raw", ratio: 1, kl: 0 },
        { name: "lossless", ratio: 1.5, kl: 0, ...speeds },
        { name: "near", ratio: 5, kl: 0.001, ...speeds },
        { name: "odd", ratio: 99, kl: -1, ...speeds },
      ],
    },
  ],
});
const ticket = create(RunTicketSchema, {
  source: { layout, shardAddresses: ["a:1"], codecProfileIds: [PROFILE] },
});

/** A fetch whose sidecar is this test; the link is known to be slow. */
function begin(accuracy: KvAccuracy, tokenEnd: number, source = ticket, change: Partial<KvFetchFacts> = {}) {
  const book = new TransferBook(profilesOf(description));
  book.begin("a:1");
  const raw = { wireBytes: 1e6, rawBytes: 1e6, encodeMs: 0, decodeMs: 0 };
  book.observe("a:1", undefined, new Map([[0, raw]]), 100, now());
  book.end("a:1");
  const asked: FetchRequest[] = [];
  const calls: EventEmitter[] = [];
  const kernel = {
    fetch: (request: FetchRequest) => {
      asked.push(request);
      const call = Object.assign(new EventEmitter(), { cancel: () => call.emit("error", new Error("cancelled")) });
      calls.push(call);
      return call;
    },
    fence: async () => undefined,
  } as unknown as Kernel;
  const told: KvProgress[] = [];
  const broken: unknown[] = [];
  const fellBack: string[] = [];
  const wanted = { source: levelSourceOf(layout, source.source), bytesPerToken: BYTES_PER_TOKEN, wantedMs: 100 };
  const fetch = new KvFetch(
    {
      ...{ kernel, metadata: new Metadata(), book, ticket: source },
      ...{ blockIds: [1 as BlockId], tokenBegin: 0, tokenEnd, tenantScope: new Uint8Array(16), deadlineMs: 60_000 },
      ...{ levels: plannedLevels({ book, tokenEnd, accuracy, ...wanted }), ...change },
    },
    {
      progress: (progress) => told.push(progress),
      broken: (error) => broken.push(error),
      fellBack: (error) => fellBack.push(error.reason),
    },
  );
  const levels = () => asked.map((request) => request.levels.map(({ tokenEnd, level }) => [tokenEnd, level]));
  const complete = (index: number, level: number, wireBytes: number) => {
    const verifiedTokenEnd = asked[index]?.tokenEnd ?? 0;
    const traffic = { level, wireBytes: BigInt(wireBytes), rawBytes: BigInt(wireBytes * 2) };
    const times = { encodeNanos: 1_000_000n, decodeNanos: 1_000_000n };
    const dataBytes = BigInt(wireBytes);
    calls[index]?.emit(
      "data",
      create(FetchResponseSchema, {
        ...{ verifiedTokenEnd, dataBytes, complete: true, transferNanos: 50_000_000n },
        levels: [{ ...traffic, ...times }],
      }),
    );
    calls[index]?.emit("end");
  };
  return { asked, calls, told, broken, fellBack, fetch, levels, complete, book };
}

test("what may lose nothing comes lossless over a slow link, in one call", () => {
  const { asked, levels, complete, told } = begin("exact", 3_000);
  expect(levels()).toEqual([[[3_000, 1]]]);
  expect(Buffer.from(asked[0]?.codecProfileId ?? [])).toEqual(Buffer.from(PROFILE));
  complete(0, 1, 40_000_000);
  expect(told.at(-1)).toMatchObject({ complete: true, approximateTokenCount: 0 });
  expect(told.at(-1)?.levels).toEqual(new Map([["lossless", { wireBytes: 40_000_000, rawBytes: 80_000_000 }]]));
  expect(asked).toHaveLength(1);
});

test("what may lose something comes in parts, each as what was measured before it says", () => {
  const { levels, complete, told, book } = begin("near", 2_500);
  expect(levels()).toEqual([[[1_024, 2]]]);
  complete(0, 2, 4_000_000);
  expect(told.at(-1)).toMatchObject({ verifiedTokenEnd: 1_024, complete: false, approximateTokenCount: 1_024 });
  expect(book.linkOf("a:1")?.usual).toBe((1e4 + 8e4) / 2);
  complete(1, 2, 4_000_000);
  complete(2, 2, 1_000_000);
  expect(levels().map((spans) => spans.at(-1)?.[0])).toEqual([1_024, 2_048, 2_500]);
  expect(told.at(-1)).toMatchObject({ complete: true, dataBytes: 9_000_000n, transferNanos: 150_000_000n });
});

test("one level for all is what it says, and raw where the source cannot have it", () => {
  const near = { level: 2, name: "near", isApproximate: true };
  const levels = oneLevel(near, Buffer.from(PROFILE).toString("hex"), { tokenBegin: 1_984, tokenEnd: 2_048 });
  const last = begin("near", 2_048, ticket, { tokenBegin: 1_984, levels });
  expect(last.levels()).toEqual([[[2_048, 2]]]);
  expect(last.asked[0]).toMatchObject({ tokenBegin: 1_984, tokenEnd: 2_048 });
  last.complete(0, 2, 100_000);
  expect(last.told.at(-1)).toMatchObject({ complete: true, approximateTokenCount: 64 });
  const refused = begin("near", 2_048, ticket, { tokenBegin: 1_984, levels });
  refused.calls[0]?.emit("error", new KvasirError({ reason: "codec_mismatch", message: "no such profile" }));
  expect(refused.levels()[1]).toEqual([]);
  refused.complete(1, 0, 100_000);
  expect(refused.told.at(-1)).toMatchObject({ complete: true, approximateTokenCount: 0 });
});

test("a source that cannot have a level sends raw, from where it was, and nothing is approximate", () => {
  const { asked, calls, levels, fellBack, broken, complete, told } = begin("near", 500);
  calls[0]?.emit("error", new KvasirError({ reason: "codec_mismatch", message: "no such profile" }));
  calls[0]?.emit("end");
  expect([fellBack, broken]).toEqual([["codec_mismatch"], []]);
  expect(levels()[1]).toEqual([]);
  expect(asked[1]).toMatchObject({ tokenBegin: 0, tokenEnd: 500, leaseId: asked[0]?.leaseId });
  complete(1, 0, 10_000_000);
  expect(told.at(-1)).toMatchObject({ complete: true, approximateTokenCount: 0 });
});

test("layouts that divide heads or differ in type, and sources without a profile, get raw", () => {
  const source = (change: object) => create(RunTicketSchema, { source: { ...ticket.source, ...change } as never });
  for (const other of [
    source({ layout: create(KvLayoutSchema, { ...layout, shardCount: 2 }) }),
    source({ layout: create(KvLayoutSchema, { ...layout, dtype: KvDtype.F32 }) }),
    source({ codecProfileIds: [] }),
  ]) {
    expect(begin("near", 500, other).levels()).toEqual([[]]);
  }
});

test("what was cancelled because it was slow tells how far the link may fall", () => {
  const { calls, fetch, book } = begin("near", 500);
  const traffic = { level: 2, wireBytes: 100_000n, rawBytes: 500_000n, encodeNanos: 1n, decodeNanos: 1n };
  const progress = { verifiedTokenEnd: 0, dataBytes: 100_000n, transferNanos: 1_000_000_000n, levels: [traffic] };
  calls[0]?.emit("data", create(FetchResponseSchema, progress));
  expect(book.linkOf("a:1")?.recent).toEqual([1e4]);
  fetch.cancel();
  calls[0]?.emit("end");
  expect(book.linkOf("a:1")?.recent).toEqual([1e4, 100]);
  expect(book.linkOf("a:1")?.low).toBe(100);
});

test("other errors and an early end break it, and nothing is told after it was cancelled", () => {
  const early = begin("exact", 100);
  early.calls[0]?.emit("end");
  expect(early.broken).toMatchObject([{ reason: "unavailable" }]);
  const refused = begin("near", 100);
  refused.calls[0]?.emit("error", new KvasirError({ reason: "digest_mismatch", message: "altered" }));
  refused.calls[0]?.emit("end");
  expect(refused.broken).toMatchObject([{ reason: "digest_mismatch" }]);
  const cancelled = begin("near", 100);
  cancelled.fetch.cancel();
  cancelled.complete(0, 2, 1_000_000);
  expect([cancelled.told, cancelled.broken, cancelled.asked.length]).toEqual([[], [], 1]);
});
