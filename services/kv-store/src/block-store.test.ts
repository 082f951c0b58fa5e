import { create } from "@bufbuild/protobuf";
import { NEVER } from "@kvasir/core";
import {
  DiskBlockSchema,
  FeedHelloSchema,
  KvLayoutSchema,
  LendingService,
  type Loan,
  UsedBlocksSchema,
} from "@kvasir/proto";
import { createClient, createServer, errorFromService, messages, PLAIN } from "@kvasir/rpc";
import { lendingService, now, PeerClients } from "@kvasir/worker";
import { trace } from "@opentelemetry/api";
import { Registry } from "prom-client";
import { afterEach, expect, test } from "vitest";
import { BlockStore, type BlockStoreSettings } from "./block-store.ts";
import { registerMetrics } from "./metrics.ts";
import { StoreKernel } from "./store-kernel.ts";
import { FakeSidecar, keysOf } from "./testing/fake-sidecar.ts";
import type { FollowedWorker } from "./worker-followers.ts";

const SILENT = { info: () => undefined, warn: () => undefined, error: () => undefined };
const SCOPE = new Uint8Array(16).fill(7);
const layout = create(KvLayoutSchema, { blockSize: 32, exactFingerprint: new Uint8Array(16).fill(1) });
const hashes = (...numbers: number[]) =>
  Uint8Array.from(numbers.flatMap((number) => Array.from({ length: 16 }, (_, index) => (index === 4 ? number : 9))));

const ends: (() => unknown)[] = [];
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});

/** A store over a sidecar without bytes, beside a worker that lends whatever it is asked for. */
async function world(settings: Partial<BlockStoreSettings> = {}, onDisk: readonly number[] = []) {
  const sidecar = new FakeSidecar();
  await sidecar.start(
    onDisk.map((number) => create(DiskBlockSchema, { key: hashes(number), tenantScope: SCOPE, position: number })),
  );
  ends.push(() => sidecar.stop());
  const asked: number[] = [];
  const loans = { open: 0 };
  const lender = createServer();
  lender.add(LendingService, {
    async lend(call) {
      const { value } = await messages(call).next();
      const start = value?.kind.case === "start" ? value.kind.value : undefined;
      asked.push(...keysOf(start?.hashes ?? new Uint8Array()).map((key) => Number.parseInt(key.slice(8, 10), 16)));
      loans.open++;
      call.write({
        kind: { case: "loan", value: { blockCount: (start?.hashes.length ?? 0) / 16, ticket: {}, source: {} } },
      });
      await new Promise<void>((resolve) => call.once("cancelled", () => resolve()));
      loans.open--;
    },
  });
  const address = await lender.listen("127.0.0.1:0");
  ends.push(() => lender.close(0));
  const workers = new PeerClients(LendingService, PLAIN);
  const kernel = new StoreKernel(sidecar.socketPath);
  ends.push(
    () => kernel.close(),
    () => workers.close(),
  );
  const registry = new Registry();
  const store: BlockStore = new BlockStore({
    settings: {
      ...{ storeId: "s", admission: "all", pullBytesPerSecond: 1e9, usesPerReplica: 32, tenantShareMax: 1 },
      ...{ ttlSeconds: 0, stagingBlockCount: 64, keptShareMax: 0.5, leaseMs: 5_000 },
      ...settings,
    },
    ...{
      epoch: 1n,
      ticketKey: new Uint8Array(32),
      layout,
      kernel,
      workers,
      tracer: trace.getTracer("test"),
      log: SILENT,
    },
    description: await kernel.describe(),
    meter: registerMetrics(
      registry,
      () => store,
      () => 0,
      () => 1,
    ),
    nodes: () => [{ id: "s", weight: 1 }],
    changed: () => undefined,
  });
  await store.recover();
  ends.push(() => store.end());
  const worker: FollowedWorker = {
    ...{ workerId: "w", role: "prefill", address },
    hello: create(FeedHelloSchema, { workerId: "w", epoch: 1n, layout }),
  };
  let requests = 0;
  const use = (blocks: Uint8Array) => {
    const common = { tenantScope: SCOPE, requestId: `r${++requests}`, prefillTokensPerSecond: 1_000 };
    store.used(worker, create(UsedBlocksSchema, { ...common, hashes: blocks }));
  };
  const service = createServer();
  service.add(
    LendingService,
    lendingService((request, metadata) => store.lend(request, metadata), 5_000),
  );
  const client = createClient(LendingService, await service.listen("127.0.0.1:0"));
  ends.push(
    () => service.close(0),
    () => client.channel.close(),
  );
  /** A worker borrows; the loan lives until it is cut. */
  const borrow = (blocks: Uint8Array, tenantScope = SCOPE) => {
    const call = client.lend();
    const loan = new Promise<Loan>((resolve, reject) => {
      call.on("data", ({ kind }) => kind.case === "loan" && resolve(kind.value));
      call.on("error", (error) => reject(errorFromService(error)));
    });
    loan.catch(() => undefined);
    call.write({ kind: { case: "start", value: { expectedEpoch: 1n, tenantScope, hashes: blocks, firstBlock: 0 } } });
    return { loan, cut: () => call.cancel() };
  };
  const metric = async (name: string) => {
    const line = (await registry.metrics()).split("\n").find((text) => text.startsWith(`${name} `));
    return Number(line?.slice(name.length + 1));
  };
  return { store, sidecar, asked, loans, use, borrow, metric };
}

test("what requests use is borrowed from the worker, once, stored and written; a loan ends with its pull", async () => {
  const { store, sidecar, asked, loans, use, metric } = await world();
  use(hashes(1, 2, 3));
  use(hashes(1, 2, 3));
  await expect.poll(() => sidecar.disk.size).toBe(3);
  use(hashes(1, 2, 4, 5));
  await expect.poll(() => sidecar.disk.size).toBe(5);
  expect(asked).toEqual([1, 2, 3, 4, 5]);
  expect(sidecar.ingests).toEqual([
    { firstBlock: 0, count: 3 },
    { firstBlock: 2, count: 2 },
  ]);
  await expect.poll(() => loans.open).toBe(0);
  store.directory.checkInvariants();
  expect(await metric('kvasir_store_used_blocks_total{decision="pulled"}')).toBe(5);
});

test("of a pull that breaks what came stays, and the rest is asked for again when it is used again", async () => {
  const { sidecar, asked, use, metric } = await world();
  sidecar.ingestMax = 1;
  use(hashes(1, 2, 3));
  await expect.poll(() => metric('kvasir_store_pulls_total{outcome="partial"}')).toBe(1);
  sidecar.ingestMax = 10;
  use(hashes(1, 2, 3));
  await expect.poll(() => sidecar.disk.size).toBe(3);
  expect(asked).toEqual([1, 2, 3, 2, 3]);
});

test("a loan pins its blocks until who borrows is gone, also where that is before they are open", async () => {
  const { store, sidecar, borrow } = await world({}, [0, 1, 2]);
  const first = borrow(hashes(0, 1, 2, 3));
  expect(await first.loan).toMatchObject({ blockCount: 3, fromDisk: [true, true, true] });
  const again = borrow(hashes(0, 1));
  expect((await again.loan).fromDisk).toEqual([false, false]);
  expect([store.loanCount, sidecar.leases.size]).toEqual([2, 2]);
  const open = Promise.withResolvers<void>();
  sidecar.exposing = open.promise;
  const late = borrow(hashes(0));
  await expect.poll(() => store.loanCount).toBe(3);
  for (const { cut } of [first, again, late]) cut();
  open.resolve();
  await expect.poll(() => [store.loanCount, sidecar.leases.size]).toEqual([0, 0]);
  store.directory.checkInvariants();
});

test("a block that the sidecar has lost is a miss, and is not told any more; another tenant's are not there", async () => {
  const { store, sidecar, borrow, metric } = await world({}, [0, 1]);
  expect((await borrow(hashes(0, 1), new Uint8Array(16)).loan).blockCount).toBe(0);
  sidecar.disk.delete(keysOf(hashes(1))[0] ?? "");
  const { loan, cut } = borrow(hashes(0, 1));
  expect((await loan).blockCount).toBe(1);
  cut();
  expect(await metric("kvasir_store_missing_blocks_total")).toBe(1);
  expect(store.directory.has(hashes(1))).toBe(false);
});

test("a pinned prompt is taken at its first use, and stays until its pin ends", async () => {
  const { store, sidecar, asked, use, metric } = await world({ admission: "second-hit" });
  const keys = [1, 2, 3].map((number) => hashes(number));
  use(hashes(1, 2, 3));
  expect(store.directory.blockCount).toBe(0);
  store.keep([{ keys, expiresAt: NEVER }]);
  expect(await metric('kvasir_store_kept_blocks{state="wanted"}')).toBe(3);
  use(hashes(1, 2, 3, 4));
  await expect.poll(() => sidecar.disk.size).toBe(3);
  expect(asked).toEqual([1, 2, 3]);
  expect(await metric('kvasir_store_kept_blocks{state="present"}')).toBe(3);
  store.keep([{ keys, expiresAt: now() }]);
  store.tick();
  expect(await metric('kvasir_store_kept_blocks{state="wanted"}')).toBe(0);
});

test("a pull of which nobody knows how it ended leaves nothing that nobody knows", async () => {
  const { store, sidecar, use, metric } = await world();
  sidecar.losesAnswers = true;
  use(hashes(1, 2));
  await expect.poll(() => metric('kvasir_store_pulls_total{outcome="unavailable"}')).toBe(1);
  await expect.poll(() => sidecar.memory.size).toBe(0);
  expect(sidecar.ingests).toEqual([{ firstBlock: 0, count: 2 }]);
  sidecar.losesAnswers = false;
  use(hashes(1, 2));
  await expect.poll(() => sidecar.disk.size).toBe(2);
  store.directory.checkInvariants();
});
