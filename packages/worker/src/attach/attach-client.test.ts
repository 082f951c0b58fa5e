import { type BlockId, BlockPool, type Instant, TransferBook } from "@kvasir/core";
import { type AttachRequest, RouterService } from "@kvasir/proto";
import { createServer, messages, type RpcServer } from "@kvasir/rpc";
import { expect, test } from "vitest";
import { now } from "../clock.ts";
import { SILENT } from "../log.ts";
import { eventually } from "../testing/quiet.ts";
import { AttachClient } from "./attach-client.ts";
import type { AttachState } from "./attach-stream.ts";
import { cacheOfPool } from "./cache-teller.ts";

async function router(listen = "127.0.0.1:0") {
  const streams: AttachRequest[][] = [];
  const server: RpcServer = createServer();
  let tell: (response: { wantsCacheSnapshot: boolean }) => void = () => undefined;
  server.add(RouterService, {
    place: async () => undefined,
    describeCluster: async () => ({}),
    attach: async (call) => {
      const received: AttachRequest[] = [];
      streams.push(received);
      tell = (response) => call.write(response);
      for await (const request of messages(call)) {
        received.push(request);
        call.write({ acknowledgedSequence: request.sequence });
      }
    },
  });
  const address = await server.listen(listen);
  const wantSnapshot = () => tell({ wantsCacheSnapshot: true });
  return { address, streams, close: () => server.close(0), wantSnapshot };
}

function state(epoch: bigint): AttachState & { freeBlocks: number; pool: BlockPool } {
  const pool = new BlockPool(4);
  const current = { freeBlocks: 5 };
  return Object.assign(current, {
    epoch,
    hello: { case: "hello" as const, value: { workerId: "w" } },
    load: () => ({ case: "load" as const, value: { freeBlocks: current.freeBlocks } }),
    pool,
    caches: cacheOfPool(pool),
  });
}

test("hello first, then the cache and load with a gapless sequence: at once on a change but not more often than 20 ms, and at least each second", async () => {
  const { address, streams, close } = await router();
  const current = state(3n);
  const client = new AttachClient(() => current, SILENT);
  client.setRouters([{ routerId: "r", address }]);
  const started = performance.now();
  await eventually(() => expect(streams[0]?.length).toBeGreaterThanOrEqual(3));
  const count = () => streams[0]?.length ?? 0;
  const before = count();
  while (count() < before + 10) {
    current.freeBlocks++;
    client.loadChanged();
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  // Hello and the cache's snapshot come at once, then each load twenty milliseconds after what was sent before it.
  expect(count() - 2).toBeLessThanOrEqual((performance.now() - started) / 20 + 1);
  const unchanged = count();
  await eventually(() => expect(count()).toBeGreaterThanOrEqual(unchanged + 2));
  const received = streams[0] ?? [];
  expect(received.map((request) => Number(request.sequence))).toEqual(received.map((_, index) => index + 1));
  expect(received.every((request) => request.epoch === 3n)).toBe(true);
  expect(received.map((request) => request.kind.case)).toEqual(
    received.map((_, index) => ["hello", "cache"][index] ?? "load"),
  );
  await client.close();
  await eventually(() => expect(received.at(-1)?.kind.case).toBe("goodbye"));
  await close();
});

test("what comes into the cache is told with the load, and all of it again where the router missed something", async () => {
  const { address, streams, close, wantSnapshot } = await router();
  const current = state(3n);
  const client = new AttachClient(() => current, SILENT);
  client.setRouters([{ routerId: "r", address }]);
  const told = () => (streams[0] ?? []).flatMap(({ kind }) => (kind.case === "cache" ? [kind.value] : []));
  await eventually(() => expect(told()).toMatchObject([{ sequence: 1n, kind: { case: "snapshot" } }]));
  const { pool } = current;
  pool.reserve(1, 1);
  pool.keep(pool.take(1, 1)[0] as BlockId, new Uint8Array(16).fill(9), 0);
  client.loadChanged();
  const stored = { case: "stored", value: Buffer.alloc(16, 9) };
  await eventually(() => expect(told()[1]).toMatchObject({ sequence: 2n, kind: stored }));
  wantSnapshot();
  const snapshot = { case: "snapshot", value: { part: 0, isLast: true, hashes: Buffer.alloc(16, 9) } };
  await eventually(() => expect(told()[2]).toMatchObject({ sequence: 2n, kind: snapshot }));
  await client.close();
  await close();
});

test("a link that was measured is told once on each stream, and with the first load of a new one again", async () => {
  const first = await router();
  const second = await router();
  const book = new TransferBook([]);
  const measure = (peer: string, bytesPerMs: number, at: Instant) => {
    const traffic = { wireBytes: 1e6, rawBytes: 1e6, encodeMs: 0, decodeMs: 0 };
    book.observe(peer, undefined, new Map([[0, traffic]]), 1e6 / bytesPerMs, at);
  };
  let freeBlocks = 5;
  const current: AttachState = {
    ...state(3n),
    load: (links) => ({ case: "load", value: { freeBlocks, links: [...links] } }),
    links: book,
  };
  const client = new AttachClient(() => current, SILENT);
  client.setRouters([{ routerId: "r", address: first.address }]);
  const loadsOf = ({ streams }: typeof first) =>
    (streams[0] ?? []).flatMap(({ kind }) => (kind.case === "load" ? [kind.value] : []));
  const linksOf = (from: typeof first) => loadsOf(from).flatMap(({ links }) => links);
  await eventually(() => expect(loadsOf(first)).toHaveLength(1));
  measure("p:9", 1_000, now());
  client.loadChanged();
  const rate = { exactBytesPerSecond: 1e6, nearBytesPerSecond: 1e6, fastBytesPerSecond: 1e6 };
  await eventually(() => expect(linksOf(first)).toMatchObject([{ source: "p:9", ...rate }]));
  const loadCount = loadsOf(first).length;
  freeBlocks++;
  client.loadChanged();
  await eventually(() => expect(loadsOf(first).length).toBeGreaterThan(loadCount));
  expect(linksOf(first)).toHaveLength(1);
  measure("q:9", 2_000, (now() - 60e9) as Instant);
  client.setRouters([
    { routerId: "r", address: first.address },
    { routerId: "s", address: second.address },
  ]);
  await eventually(() => expect(linksOf(second)).toMatchObject([{ source: "q:9" }, { source: "p:9", ...rate }]));
  expect(linksOf(second)[0]?.ageMs).toBeGreaterThanOrEqual(60_000);
  await eventually(() => expect(linksOf(first).map(({ source }) => source)).toEqual(["p:9", "q:9"]));
  await client.close();
  await Promise.all([first.close(), second.close()]);
});

test("after a break, and with each incarnation, it begins again with hello; without a sidecar it stays away", async () => {
  const first = await router();
  let current: AttachState | undefined;
  const client = new AttachClient(() => current, SILENT);
  client.setRouters([{ routerId: "r", address: first.address }]);
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect(first.streams).toEqual([]);
  current = state(1n);
  client.incarnationChanged();
  await eventually(() => expect(first.streams[0]?.length).toBeGreaterThanOrEqual(3));
  await first.close();
  const second = await router(first.address);
  await eventually(() => expect(second.streams.at(-1)?.[0]?.kind.case).toBe("hello"));
  current = state(2n);
  client.incarnationChanged();
  await eventually(() => expect(second.streams.at(-1)?.[0]).toMatchObject({ epoch: 2n, sequence: 1n }));
  client.setRouters([]);
  await second.close();
});
