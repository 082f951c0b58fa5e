import { setTimeout as sleep } from "node:timers/promises";
import type { LocalCluster, ProcessHandle } from "@kvasir/cli";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { blocks, chatBody, expectMoved, expectNothingLeft, metric, openStream, startTiny } from "./support.ts";

const BLOCK_SIZE = 32;
const MAX_TOKENS = 40;
const PROMPT = `${"The old mill stood beside the river, and nobody had opened its door for years. ".repeat(60)}Who came?`;

let cluster: LocalCluster;
beforeAll(async () => {
  cluster = await startTiny({ prefill: 2, decode: 2, restart: true, stepTokens: 64, blockSize: BLOCK_SIZE });
}, 60_000);
afterAll(() => cluster?.stop());

const held = new Set<number>();
afterEach(async () => {
  for (const pid of held) resume(pid);
  held.clear();
  await cluster.ready();
  await expectNothingLeft(cluster);
});

function hold(pid: number): void {
  held.add(pid);
  process.kill(pid, "SIGSTOP");
}

function resume(pid: number): void {
  try {
    process.kill(pid, "SIGCONT");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error; // It was killed.
  }
}

const all = (kind: string) => cluster.processes.filter((process) => process.kind === kind);
const sidecarOf = (worker: ProcessHandle): number => {
  if (worker.sidecarPid === undefined) throw new Error(`${worker.name} tells no sidecar`);
  return worker.sidecarPid;
};

async function sum(kind: string, sample: string): Promise<number> {
  const values = await Promise.all(all(kind).map((worker) => metric(worker, sample)));
  return values.reduce((a, b) => a + b, 0);
}

/** The worker that holds blocks for the request. */
async function busy(kind: string): Promise<ProcessHandle> {
  for (const worker of all(kind)) if ((await blocks(worker, "used")) > 0) return worker;
  throw new Error(`no ${kind} worker holds blocks`);
}

interface Last {
  readonly usage: { readonly prompt_tokens: number; readonly completion_tokens: number };
  readonly kvasir: {
    readonly kv_bytes_moved: number;
    readonly prefill_worker: string;
    readonly decode_worker: string;
    readonly resumes: number;
  };
}

/** A seeded request, read to its end. */
function ask() {
  const first = Promise.withResolvers<void>();
  let eventCount = 0;
  const read = async () => {
    const fields = { temperature: 1.1, seed: 9, max_tokens: MAX_TOKENS, ignore_eos: true };
    const body = chatBody(PROMPT, { ...fields, stream_options: { include_usage: true } });
    const stream = await openStream(cluster, body);
    let text = "";
    let last: unknown;
    for (let event = await stream.next(); event !== "done"; event = await stream.next()) {
      if (event === undefined || "error" in event) throw new Error(`the stream ended by ${JSON.stringify(event)}`);
      eventCount++;
      first.resolve();
      text += (event as { choices: { delta: { content?: string } }[] }).choices[0]?.delta.content ?? "";
      last = event;
    }
    return { text, last: last as Last };
  };
  const done = read();
  done.catch(() => undefined);
  return { done, first: first.promise, eventCount: () => eventCount };
}

test("a decode worker that dies leaves the prompt's KV to another one: no token of the prompt is computed twice", async () => {
  const undisturbed = await ask().done;
  const promptTokens = undisturbed.last.usage.prompt_tokens;
  const computed = () => sum("prefill", "kvasir_sidecar_prompt_tokens_computed_total");
  // What the request before made of it may not be told yet.
  await expect.poll(computed).toBeGreaterThanOrEqual(promptTokens);
  const before = await computed();
  for (const worker of all("decode")) hold(sidecarOf(worker));
  const request = ask();
  await request.first;
  const victim = await busy("decode");
  process.kill(victim.pid, "SIGKILL");
  for (const pid of held) resume(pid);
  const { text, last } = await request.done;
  expect(text).toBe(undisturbed.text);
  expect(last.kvasir).toMatchObject({ resumes: 1 });
  expect(last.kvasir.decode_worker).not.toBe(victim.name);
  expect(last.usage).toEqual(undisturbed.last.usage);
  await expect.poll(computed).toBe(before + promptTokens);
  expectMoved(last.kvasir.kv_bytes_moved, promptTokens);
}, 60_000);

test("a prefill worker that dies in the middle costs decode nothing that was verified: only the rest travels", async () => {
  const undisturbed = await ask().done;
  const received = () => sum("decode", "kvasir_sidecar_kv_bytes_received_total");
  // A machine that is busy may let a sidecar compute for longer than its turn: then once more.
  for (let attempt = 0; attempt < 5; attempt++) {
    const before = await received();
    const sidecars = all("prefill").map(sidecarOf);
    for (const pid of sidecars) hold(pid);
    const request = ask();
    for (let turn = 0; (await received()) === before; turn++) {
      if (turn === 400) throw new Error("no KV came");
      for (const pid of sidecars) process.kill(pid, "SIGCONT");
      for (const begun = performance.now(); performance.now() - begun < 1; );
      for (const pid of sidecars) process.kill(pid, "SIGSTOP");
      await sleep(110);
    }
    const isTooLate = request.eventCount() > 0;
    const victim = isTooLate ? undefined : await busy("prefill");
    if (victim) process.kill(sidecarOf(victim), "SIGKILL");
    for (const pid of sidecars) resume(pid);
    const { text, last } = await request.done;
    expect(text).toBe(undisturbed.text);
    if (victim === undefined) continue;
    expect(last.kvasir.prefill_worker).not.toBe(victim.name);
    expect(last.kvasir.resumes).toBe(0);
    // A block that had not come whole travels twice.
    expectMoved(last.kvasir.kv_bytes_moved, last.usage.prompt_tokens + BLOCK_SIZE - 1);
    return;
  }
  throw new Error("the pull was over each time");
}, 60_000);
