import { setTimeout as delay } from "node:timers/promises";
import { startTestRedis, type TestRedis } from "@kvasir/testkit/redis";
import { Redis } from "ioredis";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { connectState, type State } from "./state.ts";

/** Tried often; lapses later than anything that is waited for here, however long this process stands still. */
const QUICK = { ttlMs: 20_000, attemptMs: 50 };
const LEASE = "kvasir:{test}:leader:router";

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

/** A candidate and what it was told. */
async function candidate(id: string) {
  const state = await connectState(server.url, "test");
  states.push(state);
  const told: number[] = [];
  return { state, told, leadership: state.lead("router", id, (token) => told.push(token), QUICK) };
}

test("one leads; when it leaves, another does at once, under a higher token", async () => {
  const first = await candidate("r0");
  await expect.poll(() => first.leadership.token).toBeGreaterThan(0);
  const second = await candidate("r1");
  await raw.pexpire(LEASE, QUICK.ttlMs / 2);
  await expect.poll(() => raw.pttl(LEASE), { message: "it is renewed" }).toBeGreaterThan(QUICK.ttlMs / 2);
  await delay(QUICK.attemptMs * 4);
  expect(second.leadership.token).toBe(0);
  expect(first.told).toHaveLength(1);
  await first.leadership.close();
  // Sooner than the lease would lapse.
  await expect.poll(() => second.leadership.token, { timeout: QUICK.ttlMs / 2 }).toBeGreaterThan(first.told[0] ?? 0);
  await second.leadership.close();
});

test("a leader that was followed behind its back steps down, and its namesake is another process", async () => {
  const first = await candidate("r0");
  await expect.poll(() => first.leadership.token).toBeGreaterThan(0);
  const { token } = first.leadership;
  await raw.set(LEASE, "somebody else");
  await expect.poll(() => first.leadership.token).toBe(0);
  await raw.del(LEASE);
  const namesake = await candidate("r0");
  await expect.poll(() => first.leadership.token + namesake.leadership.token).toBeGreaterThan(token);
  expect([first.leadership.token, namesake.leadership.token]).toContain(0);
});

test("while Redis does not answer the parts stand, and what it forgets is never handed out again", async () => {
  const first = await candidate("r0");
  await expect.poll(() => first.leadership.token).toBeGreaterThan(0);
  const second = await candidate("r1");
  const { token } = first.leadership;
  await raw.call("CLIENT", "PAUSE", "1000", "ALL").catch(() => undefined);
  await delay(700);
  expect([first.leadership.token, second.leadership.token]).toEqual([token, 0]);
  await expect.poll(() => raw.ping().catch(() => "")).toBe("PONG");
  await raw.flushall();
  const tokens = () => [first.leadership.token, second.leadership.token].sort();
  // Whoever takes the forgotten lease does so under a new token, and the other one has none.
  await expect.poll(() => tokens()[1]).toBeGreaterThan(token);
  await expect.poll(() => tokens()[0]).toBe(0);
});

test("what a leader left is there for the next one, and one that was followed leaves nothing any more", async () => {
  const { state } = await candidate("r0");
  expect(await state.left("router")).toBeUndefined();
  expect(await state.leave("router", 7, "of the first")).toBe(true);
  expect(await state.leave("router", 7, "of the first, later")).toBe(true);
  expect(await state.left("router")).toBe("of the first, later");
  expect(await state.leave("router", 8, "of the second")).toBe(true);
  expect(await state.leave("router", 7, "of the first, too late")).toBe(false);
  expect(await state.left("router")).toBe("of the second");
  expect(await state.left("planner")).toBeUndefined();
});
