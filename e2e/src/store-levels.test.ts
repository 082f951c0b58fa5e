import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { freePort, type LocalCluster } from "@kvasir/cli";
import { resolveModel } from "@kvasir/models";
import { makeCodecProfile } from "@kvasir/testkit/codec-profile";
import { type Link, startLink } from "@kvasir/testkit/link";
import { afterAll, beforeAll, expect, test } from "vitest";
import {
  answerOf,
  CACHE_DIR,
  chatBody,
  expectNothingLeft,
  metric,
  post,
  processOf,
  startTiny,
  workersOf,
} from "./support.ts";

// The store lies behind a link that is too slow for exact KV to be in time.
const STORE_HOST = "127.0.0.14";
const SLOW_BYTES_PER_SECOND = 1e6;
const TTFT_MS = 250;
const LOSSY = "quick";
const BLOCK_TOKENS = 32;
const PROMPT = "the old mill by the river ".repeat(250);
const ATTEMPTS_MAX = 8;

const directory = mkdtempSync(join(tmpdir(), "kvasir-e2e-store-levels-"));
let cluster: LocalCluster;
let link: Link;
beforeAll(async () => {
  const { directory: model } = await resolveModel("tiny", CACHE_DIR, () => undefined);
  const codecProfile = await makeCodecProfile({ model, kvDtype: "bf16", directory });
  const ports = [await freePort(), await freePort()] as const;
  link = await startLink(STORE_HOST, ports);
  const listen = ["--listen", `127.0.0.1:${ports[0]}`, "--transfer-listen", `127.0.0.1:${ports[1]}`];
  const extraFlags = { store: [...listen, "--advertise-host", STORE_HOST, "--admission", "all"] };
  cluster = await startTiny({ stores: 1, codecProfile, restart: true, leaseMs: 3_000, extraFlags });
}, 60_000);
afterAll(async () => {
  await cluster?.stop();
  await link?.close();
  rmSync(directory, { recursive: true, force: true });
});

async function ask(kvasir: object) {
  const body = { ...chatBody(PROMPT, { max_tokens: 8, ignore_eos: true, kvasir }), cache_salt: "kept" };
  const response = await post(cluster, body);
  expect(response.status, await response.clone().text()).toBe(200);
  const answer = await answerOf(response);
  const { prompt_tokens: promptTokens } = answer.usage;
  return { ...answer.kvasir, text: answer.choices[0].message.content, promptTokens };
}

/** The workers die and come back with nothing cached; the router knows what the store has. */
async function restartWorkers(blockCount: number): Promise<void> {
  const workers = workersOf(cluster);
  const pids = workers.map(({ pid }) => pid);
  await Promise.all(workers.map((worker) => worker.kill("SIGKILL")));
  await expect
    .poll(() => workers.every(({ pid, isRunning }, index) => isRunning && pid !== pids[index]), { timeout: 20_000 })
    .toBe(true);
  await cluster.ready();
  const known = () => metric(processOf(cluster, "router"), "kvasir_router_cached_blocks");
  await expect.poll(known).toBeGreaterThanOrEqual(blockCount);
}

/** What the worker that computed the prompt fetched first, as its trace tells. */
async function fetchOf(traceId: string): Promise<Readonly<Record<string, unknown>>> {
  const runs = async () => (await cluster.spans(traceId)).filter(({ name }) => name === "prefill.run");
  await expect.poll(async () => (await runs()).length).toBe(1);
  return (await runs())[0]?.attributes ?? {};
}

test("a store lends lossily what a request allows, where exact KV is not in time, and exactly what allows nothing", async () => {
  const first = await ask({});
  const blockCount = Math.floor((first.promptTokens - 1) / BLOCK_TOKENS);
  const stored = () => metric(processOf(cluster, "store"), `kvasir_store_blocks{medium="memory"}`);
  await expect.poll(stored, { timeout: 20_000 }).toBeGreaterThanOrEqual(blockCount);
  // A model this small is computed about as fast as its KV comes; where that was quicker, once more.
  for (let attempt = 1, levels = ""; !levels.includes(LOSSY); attempt++) {
    expect(attempt).toBeLessThanOrEqual(ATTEMPTS_MAX);
    await restartWorkers(blockCount);
    link.pace(SLOW_BYTES_PER_SECOND);
    const fast = await ask({ kv_accuracy: "fast", slo: { ttft_ms: TTFT_MS, on_miss: "best_effort" } });
    link.pace(Number.POSITIVE_INFINITY);
    const fetch = await fetchOf(fast.trace_id);
    levels = String(fetch["kvasir.fetched_levels"]);
    if (!levels.includes(LOSSY)) continue;
    expect(fetch["kvasir.fetch_source"]).toBe("store");
    expect(fast.cached_tokens.store_dram).toBe(fetch["kvasir.fetched_tokens"]);
    expect(fast.approximate_prompt_tokens).toBeGreaterThanOrEqual(Number(fetch["kvasir.approximate_prompt_tokens"]));
    expect(fast.approximate_prompt_tokens).toBeGreaterThan(0);
  }
  await expectNothingLeft(cluster);
  // What came lossily is kept by nobody, and an exact request is answered as before.
  const exact = await ask({ slo: { ttft_ms: TTFT_MS, on_miss: "best_effort" } });
  expect([exact.text, exact.approximate_prompt_tokens]).toEqual([first.text, 0]);
  await expectNothingLeft(cluster);
}, 120_000);
