import { setTimeout as delay } from "node:timers/promises";
import type { LocalCluster, ProcessHandle } from "@kvasir/cli";
import { afterAll, beforeAll, expect, test } from "vitest";
import { chatBody, expectNothingLeft, metric, openStream, post, startTiny } from "./support.ts";

let cluster: LocalCluster;
beforeAll(async () => {
  cluster = await startTiny({ routers: 2, decode: 2 });
}, 60_000);
afterAll(() => cluster?.stop());

const routers = () => cluster.processes.filter(({ kind }) => kind === "router");

async function leaders(): Promise<readonly ProcessHandle[]> {
  const answers = await Promise.all(
    routers().map(async (router) => {
      // One that is stopped accepts the connection and says nothing.
      const asked = metric(router, "kvasir_router_leader").catch(() => 0);
      const leads = await Promise.race([asked, delay(500, 0)]);
      return leads === 1 ? [router] : [];
    }),
  );
  return answers.flat();
}

async function leader(): Promise<ProcessHandle> {
  const [found, ...others] = await leaders();
  expect(others).toEqual([]);
  if (found === undefined) throw new Error("no router leads");
  return found;
}

/** Sends short requests one after the other until told to stop; answers with every status, and the longest wait. */
function steadyRequests() {
  let isOver = false;
  const statuses: number[] = [];
  let longestMs = 0;
  const run = async () => {
    while (!isOver) {
      const start = performance.now();
      const response = await post(cluster, chatBody("Who built the old mill?", { max_tokens: 8 }));
      await response.text();
      statuses.push(response.status);
      longestMs = Math.max(longestMs, performance.now() - start);
    }
  };
  const runs = [run(), run()];
  return {
    statuses,
    async stop() {
      isOver = true;
      await Promise.all(runs);
      return longestMs;
    },
  };
}

test("kill -9 of the leader: the other one leads within two seconds, no request fails, running streams never notice", async () => {
  const first = await leader();
  const stream = await openStream(cluster, chatBody("Tell me about the sea.", { max_tokens: 1_200, ignore_eos: true }));
  for (let i = 0; i < 5; i++) await stream.next();
  const requests = steadyRequests();
  await delay(300);
  const killedAt = performance.now();
  await first.kill("SIGKILL");
  await expect.poll(async () => (await leaders()).length, { timeout: 5_000, interval: 20 }).toBe(1);
  expect(performance.now() - killedAt).toBeLessThan(2_000);
  const before = requests.statuses.length;
  await expect.poll(() => requests.statuses.length, { timeout: 10_000 }).toBeGreaterThan(before + 4);
  const longestMs = await requests.stop();
  expect(new Set(requests.statuses)).toEqual(new Set([200]));
  expect(longestMs).toBeLessThan(4_000);
  for (let event = await stream.next(); event !== "done"; event = await stream.next()) {
    expect(event).not.toHaveProperty("error");
    expect(event).toBeDefined();
  }
  await first.restart();
  await expectNothingLeft(cluster);
}, 60_000);

test("a router that leads again after a pause places nothing: its placements are refused, and the new leader's are taken", async () => {
  const paused = await leader();
  process.kill(paused.pid, "SIGSTOP");
  try {
    await expect
      .poll(async () => (await leaders()).map(({ name }) => name), { timeout: 5_000, interval: 50 })
      .not.toEqual([]);
    expect((await leader()).name).not.toBe(paused.name);
    const response = await post(cluster, chatBody("Who built the old mill?"));
    expect(response.status).toBe(200);
  } finally {
    process.kill(paused.pid, "SIGCONT");
  }
  const requests = steadyRequests();
  await delay(1_000);
  await requests.stop();
  expect(new Set(requests.statuses)).toEqual(new Set([200]));
  expect((await leader()).name).not.toBe(paused.name);
  await expectNothingLeft(cluster);
}, 60_000);

test("a rolling restart of the routers under load fails no request", async () => {
  const requests = steadyRequests();
  for (const router of routers()) {
    await router.kill("SIGTERM");
    await router.restart();
    await expect.poll(async () => (await leaders()).length, { timeout: 5_000 }).toBe(1);
  }
  await delay(500);
  await requests.stop();
  expect(requests.statuses.length).toBeGreaterThan(10);
  expect(new Set(requests.statuses)).toEqual(new Set([200]));
  await expectNothingLeft(cluster);
}, 90_000);
