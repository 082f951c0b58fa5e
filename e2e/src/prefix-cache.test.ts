import type { LocalCluster } from "@kvasir/cli";
import { afterAll, beforeAll, expect, test } from "vitest";
import {
  answerOf,
  blocks,
  chatBody,
  expectNothingLeft,
  metric,
  post,
  processOf,
  startTiny,
  workersOf,
} from "./support.ts";

const BLOCK_SIZE = 32;
const TEXT = "The old mill stood beside the river, and nobody had opened its door for years. ".repeat(20);

let cluster: LocalCluster;
beforeAll(async () => {
  cluster = await startTiny({ prefill: 2, decode: 2, restart: true, blockSize: BLOCK_SIZE });
}, 60_000);
afterAll(() => cluster?.stop());

/** One request of a tenant: its key, and the salt that it chose. */
async function ask(content: string, tenant: { readonly key?: string; readonly salt?: string }, fields: object = {}) {
  const body = { ...chatBody(content, { max_tokens: 4, ...fields }), cache_salt: tenant.salt ?? null };
  const headers = {
    "content-type": "application/json",
    ...(tenant.key ? { authorization: `Bearer ${tenant.key}` } : {}),
  };
  const response = await post(cluster, body, { headers });
  expect(response.status, await response.clone().text()).toBe(200);
  const { usage, kvasir, choices } = await answerOf(response);
  const { resident = 0, remote_worker: remote = 0, ...others } = kvasir.cached_tokens;
  expect(others).toEqual({ store_dram: 0, store_disk: 0, blended: 0 });
  expect(resident + remote).toBe(usage.prompt_tokens_details.cached_tokens);
  return { text: choices[0].message.content, cached: usage.prompt_tokens_details.cached_tokens, usage, kvasir };
}

const cachedOf = (promptTokens: number) => Math.floor((promptTokens - 1) / BLOCK_SIZE) * BLOCK_SIZE;

/** Distinct blocks that the router knows of, and those that workers have. */
const known = () => metric(processOf(cluster, "router"), "kvasir_router_cached_blocks");

test("a repeated prompt goes where it is cached, is not computed again, and no other key or salt meets it", async () => {
  const first = await ask(TEXT, { key: "one" });
  expect(first.cached).toBe(0);
  await expect.poll(known).toBeGreaterThan(0);
  const again = await ask(TEXT, { key: "one" });
  expect(again.text).toBe(first.text);
  expect(again.cached).toBe(cachedOf(again.usage.prompt_tokens));
  expect(again.kvasir.kv_bytes_moved).toBe(0);
  expect(again.kvasir.cached_tokens).toMatchObject({ remote_worker: 0 });
  // Of several workers the one that has it: it is named by the placement's reason.
  expect(again.kvasir.decode_worker).toBe(first.kvasir.decode_worker);
  for (const other of [{ key: "two" }, {}, { key: "one", salt: "mine" }, { salt: "mine" }]) {
    const before = await known();
    const cold = await ask(TEXT, other);
    expect(cold.cached).toBe(0);
    await expect.poll(known).toBeGreaterThanOrEqual(before + cachedOf(cold.usage.prompt_tokens) / BLOCK_SIZE);
    expect((await ask(TEXT, other)).cached).toBe(cachedOf(again.usage.prompt_tokens));
  }
}, 60_000);

test("a longer prompt is computed and travels beyond what is cached only", async () => {
  const tenant = { key: "longer" };
  const before = await known();
  const first = await ask(TEXT, tenant);
  await expect.poll(known).toBeGreaterThanOrEqual(before + cachedOf(first.usage.prompt_tokens) / BLOCK_SIZE);
  const longer = await ask(TEXT + TEXT, tenant);
  expect(longer.cached).toBeGreaterThan(0);
  expect(longer.cached).toBeLessThanOrEqual(first.usage.prompt_tokens);
  expect(longer.kvasir.kv_bytes_moved).toBeGreaterThan(0);
  expect(longer.text).toBe((await ask(TEXT + TEXT, { key: "another" })).text);
}, 60_000);

test("a cache that is emptied is forgotten by the router too, and fills again", async () => {
  const tenant = { key: "emptied" };
  const { text } = await ask(TEXT, tenant);
  await expect.poll(known).toBeGreaterThan(0);
  for (const { adminAddress } of workersOf(cluster)) {
    const response = await fetch(`http://${adminAddress}/cache/clear`, { method: "POST" });
    expect(await response.json()).toEqual({ cleared_blocks: expect.any(Number) });
  }
  await expect.poll(known).toBe(0);
  const after = await ask(TEXT, tenant);
  expect([after.cached, after.text]).toEqual([0, text]);
  await expect.poll(known).toBeGreaterThan(0);
}, 60_000);

test("an incarnation that dies takes its cache along: the router forgets it, and the prompt is computed again", async () => {
  const tenant = { key: "mortal" };
  const { text } = await ask(TEXT, tenant);
  const held = async () => {
    const counts = await Promise.all(workersOf(cluster).map((worker) => blocks(worker, "cached")));
    return counts.reduce((sum, count) => sum + count, 0);
  };
  // What the router knows is at most what is there: a block of two workers counts once.
  await expect.poll(async () => (await known()) > 0 && (await known()) <= (await held())).toBe(true);
  for (const { sidecarPid } of workersOf(cluster)) if (sidecarPid !== undefined) process.kill(sidecarPid, "SIGKILL");
  await expect.poll(known, { timeout: 10_000 }).toBe(0);
  await cluster.ready();
  const after = await ask(TEXT, tenant);
  expect([after.cached, after.text]).toEqual([0, text]);
  await expectNothingLeft(cluster);
}, 60_000);
