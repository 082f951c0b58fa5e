import type { LocalCluster, ProcessHandle } from "@kvasir/cli";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { Standstill, streamInTheMiddle } from "./standstill.ts";
import { answerOf, chatBody, expectNothingLeft, post, processOf, startTiny, workersOf } from "./support.ts";

let cluster: LocalCluster;
beforeAll(async () => {
  cluster = await startTiny();
}, 60_000);
afterAll(() => cluster?.stop());

const LONG = chatBody("Tell me about the sea.", { max_tokens: 1_500, ignore_eos: true });

const standstill = new Standstill();
afterEach(() => standstill.end());

/** A stream in whose middle something dies, and how it ends after that: `done`, the code of a typed error, or `cut` when the connection broke without a word. */
async function killInTheMiddle(kill: () => unknown): Promise<{ end(): Promise<string> }> {
  const stream = await streamInTheMiddle(cluster, standstill, LONG);
  await kill();
  standstill.end();
  return {
    async end() {
      for (let event = await stream.next(); ; event = await stream.next()) {
        if (event === undefined) return "cut";
        if (event === "done") return "done";
        if ("error" in event) return String((event.error as { code: string }).code);
      }
    },
  };
}

async function expectRecovery(): Promise<void> {
  await expect
    .poll(async () => (await post(cluster, chatBody("Who built the old mill?")).catch(() => undefined))?.status, {
      timeout: 20_000,
      interval: 200,
    })
    .toBe(200);
  await expectNothingLeft(cluster);
}

function pids(except: ProcessHandle): number[] {
  return cluster.processes.filter((process) => process !== except).map((process) => process.pid);
}

test.each(["prefill", "decode"])(
  "kill -9 of the %s worker's sidecar",
  async (kind) => {
    const worker = processOf(cluster, kind);
    const others = cluster.processes.map((process) => process.pid);
    const stream = await killInTheMiddle(() => {
      const { sidecarPid } = worker;
      if (sidecarPid === undefined) throw new Error("the worker tells no sidecar");
      process.kill(sidecarPid, "SIGKILL");
    });
    // The prompt is long over: only the decode side is still needed, and it goes on in the next incarnation.
    expect(await stream.end()).toBe("done");
    await expectRecovery();
    expect(cluster.processes.map((process) => process.pid)).toEqual(others);
  },
  60_000,
);

test.each(["prefill", "decode"])(
  "kill -9 of the %s worker",
  async (kind) => {
    const worker = processOf(cluster, kind);
    const others = pids(worker);
    const stream = await killInTheMiddle(() => worker.kill("SIGKILL"));
    await worker.restart();
    expect(await stream.end()).toBe("done");
    await expectRecovery();
    expect(pids(worker)).toEqual(others);
  },
  60_000,
);

test("kill -9 of the router does not disturb a running stream", async () => {
  const router = processOf(cluster, "router");
  const stream = await killInTheMiddle(() => router.kill("SIGKILL"));
  expect(await stream.end()).toBe("done");
  await router.restart();
  await expectRecovery();
}, 60_000);

test("kill -9 of the gateway frees what its requests held", async () => {
  const gateway = processOf(cluster, "gateway");
  const stream = await killInTheMiddle(() => gateway.kill("SIGKILL"));
  expect(await stream.end()).toBe("cut");
  await expectNothingLeft(cluster);
  await gateway.restart();
  await expectRecovery();
}, 60_000);

test("a prefill worker that dies with a prompt in its queue fails the request in time, or it is placed again", async () => {
  const worker = processOf(cluster, "prefill");
  const requests = Array.from({ length: 6 }, () => post(cluster, chatBody("word ".repeat(300), { max_tokens: 4 })));
  await new Promise((resolve) => setTimeout(resolve, 60));
  await worker.kill("SIGKILL");
  await worker.restart();
  for (const response of await Promise.all(requests)) {
    const body = await answerOf(response);
    if (response.status !== 200) expect(body.error.code).toMatch(/^(unavailable|no_worker|overloaded|stale_epoch)$/);
  }
  await expectRecovery();
  expect(workersOf(cluster)).toHaveLength(2);
}, 60_000);

test("kill -9 of Redis disturbs neither running streams nor new requests, and workers join again when it is back, empty", async () => {
  const redis = processOf(cluster, "redis");
  const others = pids(redis);
  const stream = await killInTheMiddle(() => redis.kill("SIGKILL"));
  expect(await stream.end()).toBe("done");
  expect((await post(cluster, chatBody("Who built the old mill?"))).status).toBe(200);
  await redis.restart();
  await expectRecovery();
  expect(pids(redis)).toEqual(others);
  const worker = processOf(cluster, "decode");
  await worker.kill("SIGKILL");
  await worker.restart();
  await expectRecovery();
}, 60_000);
