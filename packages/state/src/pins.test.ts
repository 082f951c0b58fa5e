import { startTestRedis, type TestRedis } from "@kvasir/testkit/redis";
import { Redis } from "ioredis";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { PIN_MAX, type PinRecord } from "./pins.ts";
import { connectState, type State } from "./state.ts";

let server: TestRedis;
let raw: Redis;
const states: State[] = [];
beforeAll(async () => {
  server = await startTestRedis();
});
afterAll(() => server.close());
beforeEach(async () => {
  raw = new Redis(server.url);
  await raw.flushall();
});
afterEach(async () => {
  raw.disconnect();
  await Promise.all(states.splice(0).map((state) => state.close()));
});

async function connect(): Promise<State> {
  const state = await connectState(server.url, "test", { pollMs: 20 });
  states.push(state);
  return state;
}

const pin = (number: number, facts: Partial<PinRecord> = {}): PinRecord => ({
  pinId: number.toString(16).padStart(16, "0"),
  ...{ model: "tiny", tenantScope: "ab".repeat(16), promptTokenCount: 64, createdAtUnixMs: number, expiresAtUnixMs: 0 },
  layouts: [{ exactFingerprint: "00ff", blockSize: 32, hashesBase64: "AAAA" }],
  ...facts,
});

test("pins are told to who watches, now and after each change, and to who comes later", async () => {
  const [writer, reader] = [await connect(), await connect()];
  const told: (readonly string[])[] = [];
  reader.pins.watch((pins) => told.push(pins.map(({ pinId }) => pinId.slice(-1))));
  await expect.poll(() => told).toEqual([[]]);
  expect(await writer.pins.put(pin(2))).toBe("put");
  expect(await writer.pins.put(pin(1))).toBe("put");
  await expect.poll(() => told.at(-1)).toEqual(["1", "2"]);
  expect(await writer.pins.remove(pin(2).pinId)).toBe(true);
  expect(await writer.pins.remove(pin(2).pinId)).toBe(false);
  await expect.poll(() => told.at(-1)).toEqual(["1"]);
  const late: number[] = [];
  (await connect()).pins.watch((pins) => late.push(pins.length));
  await expect.poll(() => late).toEqual([1]);
});

test("a pin that has ended is not listed, and makes room; what is no pin is passed over", async () => {
  const { pins } = await connect();
  for (let number = 0; number < PIN_MAX; number++)
    await pins.put(pin(number, { expiresAtUnixMs: number === 7 ? 1 : 0 }));
  expect(await pins.list()).toHaveLength(PIN_MAX - 1);
  expect(await pins.put(pin(1_000))).toBe("put");
  expect(await pins.put(pin(1_001))).toBe("full");
  expect(await pins.put(pin(3, { promptTokenCount: 96 })), "renewed").toBe("put");
  await raw.hset("kvasir:{test}:pins", "x", "{}", "y", "not JSON");
  expect(await pins.list()).toHaveLength(PIN_MAX);
});
