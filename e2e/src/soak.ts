import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type LocalCluster, type ProcessHandle, startLocalCluster } from "@kvasir/cli";
import { defineOptions, runMain } from "@kvasir/config";
import { resolveModel } from "@kvasir/models";
import { FetchCounter } from "./fetch-counter.ts";
import { type Ending, request, undisturbed } from "./soak-request.ts";

// Real processes under load, a share of the requests cancelled, and every few seconds something killed, or stopped for seconds as if it hung: workers, stores, sidecars, routers. Whatever
// happens, a request ends once: with the tokens of an undisturbed run, or with a typed error. When the load ends, so does all that was held.
// Prompts share their beginnings, so that prefill workers fetch from each other what one of them has; new salts keep making the caches cold.
// With stores, salts come back when the workers have lost most of theirs, and tiers are small, so that blocks are evicted and files compacted.
const FLAGS = defineOptions("kvasir-soak", "kills and stops processes of a loaded cluster and checks every answer", {
  minutes: { type: "integer", env: "KVASIR_SOAK_MINUTES", default: 5, min: 1, help: "How long." },
  requests: {
    type: "integer",
    env: "KVASIR_SOAK_REQUESTS",
    default: 2_000,
    min: 1,
    help: "Ends earlier after so many.",
  },
  seed: {
    type: "integer",
    env: "KVASIR_SOAK_SEED",
    default: 1,
    min: 0,
    help: "Of what is asked, cancelled and killed, and when.",
  },
  concurrency: { type: "integer", env: "KVASIR_SOAK_CONCURRENCY", default: 8, min: 1, help: "Requests at a time." },
  cancelledPercent: {
    type: "integer",
    env: "KVASIR_SOAK_CANCELLED_PERCENT",
    default: 10,
    min: 0,
    max: 100,
    help: "Of the requests.",
  },
  stores: { type: "integer", env: "KVASIR_SOAK_STORES", default: 0, min: 0, help: "Stores, with memory and disk." },
  pausedPercent: {
    type: "integer",
    env: "KVASIR_SOAK_PAUSED_PERCENT",
    default: 20,
    min: 0,
    max: 100,
    help: "Of what would be killed: what is stopped for some seconds instead.",
  },
  killEveryMs: {
    type: "integer",
    env: "KVASIR_SOAK_KILL_EVERY_MS",
    default: 3_000,
    min: 100,
    help: "Between two kills, on average.",
  },
});

const CACHE_DIR = process.env.KVASIR_CACHE ?? join(import.meta.dirname, "../../.cache");
const DOCUMENTS = [
  "The old mill stood beside the river, and nobody had opened its door for years. ".repeat(40),
  "A lighthouse keeper counts the ships that pass in the night. ".repeat(30),
  "Nine ferries cross the sound each day, and the last one waits for the doctor. ".repeat(35),
];
/** Longer than what a decode worker computes itself of a prompt that it has. */
const QUESTIONS = ["Who came to the mill? ", "How many ships were there? ", "Where does the doctor live? "].map(
  (text) => text.repeat(8),
);
const PROMPTS = [
  "Who built the old mill?",
  "Tell me about the sea.",
  ...DOCUMENTS.flatMap((document) => QUESTIONS.map((question) => document + question)),
];
/** Requests between two salts: so many meet what the others of their salt left in the caches. */
const REQUESTS_PER_SALT = 40;
const STEP = 128;
/** Makes computing slow enough beside a fetch that the router has stores asked. */
const SHORT_STEP = 16;
/** Salts before they begin again, where stores keep what workers have lost. */
const SALTS_WITH_STORES = 6;
const STORE_FLAGS = [
  "--admission",
  "all",
  "--memory-bytes",
  "8MiB",
  "--disk-bytes",
  "32MiB",
  "--segment-bytes",
  "2MiB",
];
const SAMPLINGS: readonly Readonly<Record<string, unknown>>[] = [
  { temperature: 0, max_tokens: 48, ignore_eos: true },
  { temperature: 0.9, seed: 11, max_tokens: 96, ignore_eos: true },
  { temperature: 1.1, seed: 12, top_p: 0.9, max_tokens: 64, ignore_eos: true, repetition_penalty: 1.2 },
  { temperature: 0, max_tokens: 200, ignore_eos: true },
];

/** How long what is stopped stays so: some are noticed as silent meanwhile, some are not. */
const [PAUSE_MIN_MS, PAUSE_SPREAD_MS] = [500, 7_500];

/** Between two looks at the counters of processes that may die at any moment. */
const COUNT_EVERY_MS = 500;

await runMain(
  FLAGS,
  async ({ minutes, requests, seed, concurrency, cancelledPercent, stores, pausedPercent, killEveryMs }) => {
    const random = randomFrom(seed);
    const pick = <T>(items: readonly T[]): T => items[Math.floor(random() * items.length)] as T;
    const model = await resolveModel("tiny", CACHE_DIR, (line) => process.stderr.write(`${line}\n`));
    const logDir = mkdtempSync(join(tmpdir(), "kvasir-soak-"));
    const cluster = await startLocalCluster({
      ...{ model: model.directory, servedModelName: "tiny", routers: 2, prefill: 2, decode: 2, restart: true },
      ...{ logDir, threadsPerSidecar: 1, kvBytes: "64MiB", stepTokens: stores > 0 ? SHORT_STEP : STEP },
      ...{ stores, storeDirectory: join(logDir, "stores"), extraFlags: { store: STORE_FLAGS } },
    });
    try {
      const bodies = PROMPTS.flatMap((content) =>
        SAMPLINGS.map((sampling) => ({ model: "tiny", messages: [{ role: "user", content }], ...sampling })),
      );
      const expected = new Map<unknown, string>();
      for (const body of bodies) expected.set(body, await undisturbed(cluster, body));
      process.stderr.write(`${bodies.length} undisturbed answers; logs in ${logDir}\n`);

      const fetches = new FetchCounter(cluster);
      const endings = new Map<Ending["kind"], number>();
      const bad: string[] = [];
      const kills = new Map<string, number>();
      const until = performance.now() + minutes * 60_000;
      let asked = 0;
      let isOver = false;
      const client = async () => {
        while (asked < requests && performance.now() < until) {
          asked++;
          const body = pick(bodies);
          const cancelAfter = random() * 100 < cancelledPercent ? Math.floor(random() * 40) : undefined;
          const salted = { ...body, cache_salt: saltOf(asked, stores) };
          const ending = await request(cluster, salted, expected.get(body) ?? "", cancelAfter);
          endings.set(ending.kind, (endings.get(ending.kind) ?? 0) + 1);
          if (ending.kind === "wrong" || ending.kind === "cut" || ending.kind === "error") bad.push(ending.detail);
          if (asked % 100 === 0)
            process.stderr.write(
              `${asked} requests ${summary(endings)}; killed ${summary(kills)}; fetches ${summary(fetches.counts)}\n`,
            );
        }
      };
      const killer = async () => {
        while (!isOver) {
          await sleep(killEveryMs * (0.5 + random()));
          if (isOver) return;
          const victim = pick(cluster.processes.filter(({ kind }) => kind !== "redis" && kind !== "gateway"));
          const pauseMs = random() * 100 < pausedPercent ? PAUSE_MIN_MS + random() * PAUSE_SPREAD_MS : undefined;
          const killed = kill(victim, random() < 0.5, pauseMs);
          if (killed !== undefined) kills.set(killed, (kills.get(killed) ?? 0) + 1);
        }
      };
      const counter = async () => {
        for (; !isOver; await sleep(COUNT_EVERY_MS)) await fetches.count();
        await fetches.count();
      };
      const others = [killer(), counter()];
      await Promise.all(Array.from({ length: concurrency }, client));
      isOver = true;
      await Promise.all(others);
      // What is stopped at the end goes on first.
      await sleep(PAUSE_MIN_MS + PAUSE_SPREAD_MS);

      const held = await whatIsHeld(cluster, 45_000);
      const wrong = (endings.get("wrong") ?? 0) + (endings.get("cut") ?? 0);
      process.stdout.write(
        `${asked} requests with seed ${seed}: ${summary(endings)}; killed ${summary(kills)}; fetches of cached KV, at least: ${summary(fetches.counts)}; held at the end: ${held === "" ? "nothing" : held}\n`,
      );
      for (const detail of bad.slice(0, 20)) process.stdout.write(`  ${detail}\n`);
      const sources = ["worker", ...(stores > 0 ? ["store"] : [])];
      const idle = sources.filter((source) => (fetches.counts.get(`${source} complete`) ?? 0) === 0);
      for (const source of idle)
        process.stdout.write(
          `  no fetch of cached KV from a ${source} was completed: there was nothing to be seen of them\n`,
        );
      if (wrong > 0 || held !== "" || idle.length > 0) process.exitCode = 1;
    } finally {
      await cluster.stop();
    }
  },
);

/** Uniform in [0, 1), the same for the same seed: mulberry32. */
function randomFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

function saltOf(asked: number, stores: number): string {
  const number = Math.floor(asked / REQUESTS_PER_SALT);
  return `${stores === 0 ? number : number % SALTS_WITH_STORES}`;
}

function summary(counts: ReadonlyMap<string, number>): string {
  return [...counts].map(([kind, count]) => `${count} ${kind}`).join(", ") || "nothing";
}

/** A kill -9 of the process, or of its sidecar, or a stop for some time; undefined when it is not there just now. */
function kill(victim: ProcessHandle, sidecar: boolean, pauseMs: number | undefined): string | undefined {
  if (!victim.isRunning) return undefined;
  const pid = sidecar && victim.kind !== "router" ? victim.sidecarPid : victim.pid;
  if (pid === undefined) return undefined;
  try {
    process.kill(pid, pauseMs === undefined ? "SIGKILL" : "SIGSTOP");
  } catch {
    return undefined; // It ended a moment ago.
  }
  if (pauseMs !== undefined) setTimeout(() => goOn(pid), pauseMs);
  const name = pid === victim.pid ? victim.kind : `${victim.kind}'s sidecar`;
  return pauseMs === undefined ? name : `${name} (stopped)`;
}

function goOn(pid: number): void {
  try {
    process.kill(pid, "SIGCONT");
  } catch {
    // It was killed since.
  }
}

/** What is still held once no request runs; empty as soon as it is nothing, at the latest after `maxMs`: more than a lease. */
async function whatIsHeld(cluster: LocalCluster, maxMs: number): Promise<string> {
  for (const until = performance.now() + maxMs; ; await sleep(250)) {
    const held: string[] = [];
    for (const { name, kind } of cluster.processes) {
      if (kind !== "prefill" && kind !== "decode" && kind !== "store") continue;
      const metrics = await cluster.metrics(name).catch(() => undefined);
      if (metrics === undefined) held.push(`${name} does not answer`);
      else held.push(...(kind === "store" ? heldByStore : heldByWorker)(metrics).map((what) => `${name} ${what}`));
    }
    if (held.length === 0 || performance.now() > until) return held.join(", ");
  }
}

type Samples = ReadonlyMap<string, number>;

function heldByWorker(metrics: Samples): readonly string[] {
  return ["leased", "pinned", "orphaned", "used", "reserved"].flatMap((state) => {
    const count = metrics.get(`kvasir_blocks{state="${state}"}`) ?? 0;
    return count > 0 ? [`${state} ${count}`] : [];
  });
}

/** Loans, pins and pulls that never ended, and blocks that its sidecar has and nobody can find, or the other way round. */
function heldByStore(metrics: Samples): readonly string[] {
  const at = (sample: string) => metrics.get(sample) ?? Number.NaN;
  const zeros = [
    "kvasir_store_loans",
    "kvasir_store_exports",
    "kvasir_store_pinned_blocks",
    'kvasir_store_pull_blocks{state="waiting"}',
    'kvasir_store_pull_blocks{state="running"}',
  ].flatMap((sample) => (at(sample) === 0 ? [] : [`${sample} ${at(sample)}`]));
  const differing = ["memory", "disk"].flatMap((medium) => {
    const there = at(`kvasir_store_blocks{medium="${medium}"}`);
    const filed = at(`kvasir_store_used_bytes{medium="${medium}"}`) / at("kvasir_store_block_bytes");
    return there === filed ? [] : [`has ${there} blocks in ${medium}, and knows ${filed} of them`];
  });
  return [...zeros, ...differing];
}
