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
  TINY_KV_BYTES_PER_TOKEN,
} from "./support.ts";

// The prefill worker lies behind a link that carries so little that its KV is worth encoding.
const PREFILL_HOST = "127.0.0.10";
const SLOW_BYTES_PER_SECOND = 2e6;
const LOSSY = "quick";
const BLOCK_TOKENS = 32;
const PROMPT = "the old mill by the river ".repeat(250);

const directory = mkdtempSync(join(tmpdir(), "kvasir-e2e-levels-"));
let cluster: LocalCluster;
let link: Link;
beforeAll(async () => {
  const { directory: model } = await resolveModel("tiny", CACHE_DIR, () => undefined);
  const codecProfile = await makeCodecProfile({ model, kvDtype: "bf16", directory });
  const ports = [await freePort(), await freePort()] as const;
  link = await startLink(PREFILL_HOST, ports);
  link.pace(SLOW_BYTES_PER_SECOND);
  const listen = ["--listen", `127.0.0.1:${ports[0]}`, "--transfer-listen", `127.0.0.1:${ports[1]}`];
  const extraFlags = { "prefill-0": [...listen, "--advertise-host", PREFILL_HOST], store: ["--admission", "all"] };
  cluster = await startTiny({ stores: 1, codecProfile, extraFlags });
}, 60_000);
afterAll(async () => {
  await cluster?.stop();
  await link?.close();
  rmSync(directory, { recursive: true, force: true });
});

async function ask(kvAccuracy: "exact" | "near" | "fast") {
  const body = chatBody(PROMPT, { ignore_eos: true, kvasir: { kv_accuracy: kvAccuracy } });
  const response = await post(cluster, body);
  const { choices, usage, kvasir } = await answerOf(response);
  const raw = usage.prompt_tokens * TINY_KV_BYTES_PER_TOKEN;
  const blockCount = Math.floor(usage.prompt_tokens / BLOCK_TOKENS);
  return { ...kvasir, blockCount, text: choices[0].message.content, share: kvasir.kv_bytes_moved / raw };
}

type Answer = Awaited<ReturnType<typeof ask>>;

const wireBytes = (level: string) =>
  metric(processOf(cluster, "decode"), `kvasir_transfer_level_bytes_total{level="${level}",bytes="wire"}`);

/** The levels of a request's pulls, as its trace tells them. */
async function pulledAt({ trace_id }: Answer): Promise<readonly unknown[]> {
  const pulls = async () => (await cluster.spans(trace_id)).filter(({ name }) => name === "kv.pull");
  await expect.poll(async () => (await pulls()).length).toBeGreaterThan(0);
  return [...new Set((await pulls()).map(({ attributes }) => attributes["kvasir.level"]))];
}

/** At which speed the router believed that the prompt's KV would come to the decode worker; undefined: it knew of no measurement. */
async function believedRate({ trace_id }: Answer): Promise<number | undefined> {
  const place = async () => (await cluster.spans(trace_id)).find(({ name }) => name === "router.place")?.attributes;
  await expect.poll(place).toBeDefined();
  const { "kvasir.handover_rate_age_ms": ageMs, "kvasir.handover_bytes_per_second": rate } = (await place()) ?? {};
  return ageMs === undefined ? undefined : Number(rate);
}

test("over a slow link KV travels lossless with the same tokens, lossily where a request allows it, and what is altered on its way costs no token", async () => {
  // The first transfer finds out how slow the link is.
  const raw = await ask("exact");
  expect(await believedRate(raw)).toBeUndefined();
  expect([await pulledAt(raw), raw.share, raw.approximate_prompt_tokens]).toEqual([["raw"], 1, 0]);

  const lossless = await ask("exact");
  expect([await pulledAt(lossless), lossless.text]).toEqual([["lossless"], raw.text]);
  expect(lossless.share).toBeLessThan(0.95);

  const fast = await ask("fast");
  expect(await pulledAt(fast)).toEqual([LOSSY]);
  expect(fast.share).toBeLessThan(0.5);
  expect(fast.approximate_prompt_tokens).toBeGreaterThan(1_000);
  expect(await wireBytes(LOSSY)).toBe(fast.kv_bytes_moved);
  expect(await wireBytes("lossless")).toBe(lossless.kv_bytes_moved);

  // The store takes all three prompts as the prefill worker computed them, by a sidecar with the same profile; then only hand-overs use the
  // link.
  const stored = () => metric(processOf(cluster, "store"), `kvasir_store_blocks{medium="memory"}`);
  await expect.poll(stored, { timeout: 20_000 }).toBeGreaterThanOrEqual(3 * raw.blockCount);
  const corrupted = link.corruptAfter(100_000);
  const answer = await ask("exact");
  await corrupted;
  expect([answer.text, answer.approximate_prompt_tokens]).toEqual([raw.text, 0]);
  await expect.poll(() => metric(processOf(cluster, "decode"), "kvasir_sidecar_frames_refused_total")).toBe(1);

  // The decode worker tells the router what it measured, which is far from what is assumed of any link, and denser KV comes sooner.
  const believed = async (kvAccuracy: "exact" | "fast") => (await believedRate(await ask(kvAccuracy))) ?? Number.NaN;
  await expect.poll(() => believed("exact"), { timeout: 20_000 }).toBeLessThan(10 * SLOW_BYTES_PER_SECOND);
  await expect.poll(async () => (await believed("fast")) / (await believed("exact"))).toBeGreaterThan(1.2);
  await expectNothingLeft(cluster);
}, 120_000);
