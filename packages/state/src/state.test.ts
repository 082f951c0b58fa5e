import { spawn } from "node:child_process";
import { once } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import { startTestRedis, type TestRedis } from "@kvasir/testkit/redis";
import { Redis } from "ioredis";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import type { RegisteredRecord } from "./records.ts";
import { withoutPassword } from "./redis-connection.ts";
import { connectState, type State, type StateOptions } from "./state.ts";

/** Refreshed often; lapses later than anything that is waited for here, however long this process stands still. */
const QUICK = { recordTtlMs: 20_000, refreshMs: 100, pollMs: 30, connectMaxMs: 10_000 };
const WORKER: RegisteredRecord<"worker"> = {
  workerId: "decode-0",
  role: "decode",
  epoch: 7,
  address: "127.0.0.1:4000",
  adminAddress: "127.0.0.1:4001",
  model: "tiny",
  fingerprint: "00ff",
};
const ROUTER = { routerId: "router-0", address: "127.0.0.1:1", adminAddress: "127.0.0.1:2" };

let server: TestRedis;
let raw: Redis;
const states: State[] = [];
beforeAll(async () => {
  server = await startTestRedis();
});
afterAll(() => server.close());
beforeEach(async () => {
  raw = new Redis(server.url);
  raw.on("error", () => undefined);
  await raw.flushall();
});
afterEach(async () => {
  raw.disconnect();
  await Promise.all(states.splice(0).map((state) => state.close()));
});

async function connect(options: StateOptions = {}): Promise<State> {
  const state = await connectState(server.url, "test", { ...QUICK, ...options });
  states.push(state);
  return state;
}

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  for (const end = performance.now() + 10_000; performance.now() < end; await delay(10)) if (await condition()) return;
  throw new Error("it did not happen in 10 s");
}

test("a record is listed while its owner lives, and gone as soon as it leaves", async () => {
  const [owner, reader] = [await connect(), await connect()];
  const registration = await owner.register("worker", "decode-0", WORKER);
  await owner.register("router", "router-0", ROUTER);
  const key = "kvasir:{test}:worker:decode-0";
  await raw.pexpire(key, QUICK.recordTtlMs / 2);
  await until(async () => (await raw.pttl(key)) > QUICK.recordTtlMs / 2);
  expect(await reader.list("worker")).toMatchObject([{ ...WORKER, updatedAtUnixMs: expect.any(Number) }]);
  expect(await reader.list("router")).toEqual([ROUTER]);
  await registration.update({ ...WORKER, epoch: 8 });
  expect((await reader.list("worker"))[0]?.epoch).toBe(8);
  await registration.close();
  expect(await reader.list("worker")).toEqual([]);
  expect(await reader.list("gateway")).toEqual([]);
});

test("closing leaves the record that another process has written since", async () => {
  const [first, second] = [await connect({ refreshMs: 60_000 }), await connect()];
  const old = await first.register("worker", "decode-0", WORKER);
  await second.register("worker", "decode-0", { ...WORKER, epoch: 9 });
  await old.close();
  expect((await second.list("worker"))[0]?.epoch).toBe(9);
});

test("a killed owner's record expires by itself", async () => {
  const reader = await connect();
  const index = new URL("./index.ts", import.meta.url).href;
  const mortal = { ...QUICK, recordTtlMs: 1_500 };
  const code = `import { connectState } from ${JSON.stringify(index)};
    const state = await connectState(${JSON.stringify(server.url)}, "test", ${JSON.stringify(mortal)});
    await state.register("router", "router-0", ${JSON.stringify(ROUTER)});`;
  const child = spawn(process.execPath, ["--input-type=module-typescript", "-e", code], { stdio: "inherit" });
  const written = () => raw.get("kvasir:{test}:router:router-0");
  await until(async () => (await reader.list("router")).length === 1);
  const first = await written();
  // Its owner keeps writing it.
  await until(async () => ![null, first].includes(await written()));
  child.kill("SIGKILL");
  await once(child, "exit");
  await until(async () => (await reader.list("router")).length === 0);
});

test("epochs are unique and rise on every connection, also after Redis lost its memory", async () => {
  const both = [await connect(), await connect()];
  const runs = both.map(async (state) => {
    const epochs: number[] = [];
    for (let count = 0; count < 50; count++) epochs.push(await state.nextEpoch());
    return epochs;
  });
  const [a = [], b = []] = await Promise.all(runs);
  for (const epochs of [a, b]) expect(epochs).toEqual([...epochs].sort((x, y) => x - y));
  expect(new Set([...a, ...b]).size).toBe(100);

  const before = await both[0]?.nextEpoch();
  await until(() => Date.now() > (before ?? 0)); // A hundred epochs may take less than a hundred milliseconds.
  await raw.flushall();
  expect(await both[0]?.nextEpoch()).toBeGreaterThan(before ?? 0);
});

test("over a Redis restart the last list stands, records come back, and one line says each", async () => {
  const lines: string[] = [];
  const log = {
    info: (_: object, text: string) => lines.push(text),
    warn: (_: object, text: string) => lines.push(text),
  };
  const owner = await connect();
  const reader = await connect({ log });
  await owner.register("worker", "decode-0", WORKER);
  const seen: number[] = [];
  reader.watch("worker", (records) => seen.push(records.length));
  await until(() => seen.length === 1);

  await server.kill();
  await until(() => !reader.isConnected);
  await expect(reader.list("worker")).rejects.toThrow();
  await delay(300);
  expect(seen).toEqual([1]);
  const epoch = owner.nextEpoch(); // Waits for Redis to return.
  await server.start();
  expect(await epoch).toBeGreaterThan(0);
  await until(async () => reader.isConnected && (await reader.list("worker")).length === 1);
  expect(lines).toEqual(["Redis is away; what was known of the cluster is kept", "Redis is back"]);
});

test("foreign keys are ignored with one line each", async () => {
  const warnings: object[] = [];
  const state = await connect({ log: { info: () => undefined, warn: (fields) => warnings.push(fields) } });
  await state.register("worker", "decode-0", WORKER);
  const key = (id: string) => `kvasir:{test}:worker:${id}`;
  await raw.set(key("a"), "{not json");
  await raw.set(key("b"), JSON.stringify({ ...WORKER, workerId: "b", epoch: -1, updatedAtUnixMs: 1 }));
  await raw.set(key("c"), JSON.stringify({ ...WORKER, updatedAtUnixMs: 1 }));
  await raw.set(key("d"), '{"__proto__": {"workerId": "d"}}');
  await raw.lpush(key("e"), "a list");
  await raw.set("kvasir:{other}:worker:z", JSON.stringify(WORKER));
  for (let times = 0; times < 3; times++) {
    expect((await state.list("worker")).map((record) => record.workerId)).toEqual(["decode-0"]);
  }
  expect(warnings).toMatchObject([
    { key: key("a"), error: "it is not JSON" },
    { key: key("b"), error: expect.stringContaining("epoch") },
    { key: key("c"), error: 'it names "decode-0"' },
    { key: key("d"), error: expect.stringContaining("workerId") },
  ]);
});

test("a watcher hears of changes only, and nothing after its end", async () => {
  const state = await connect();
  const seen: string[][] = [];
  const stop = state.watch("worker", (records) => seen.push(records.map((record) => record.workerId)));
  await until(() => seen.length === 1);
  const registration = await state.register("worker", "decode-0", WORKER);
  await until(() => seen.length === 2);
  await delay(300); // Refreshes change only the time.
  await registration.close();
  await until(() => seen.length === 3);
  stop();
  await state.register("worker", "decode-0", WORKER);
  await delay(100);
  expect(seen).toEqual([[], ["decode-0"], []]);
});

test("an unreachable Redis and a wrong cluster name are clear, and no password is shown", async () => {
  await expect(connectState("redis://u:secret@127.0.0.1:1", "test", { connectMaxMs: 200 })).rejects.toThrow(
    /^cannot reach Redis at redis:\/\/u:\*\*\*@127.0.0.1:1: .*ECONNREFUSED.*; start it or set --redis-url$/,
  );
  await expect(connectState(server.url, "a*b")).rejects.toThrow('cluster is "a*b"');
  expect(withoutPassword("redis://:p@h:1/2")).toBe("redis://:***@h:1/2");
});
