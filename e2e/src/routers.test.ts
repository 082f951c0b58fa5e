import type { LocalCluster, ProcessHandle } from "@kvasir/cli";
import { RouterService } from "@kvasir/proto";
import { createClient } from "@kvasir/rpc";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { Standstill } from "./standstill.ts";
import { chatBody, expectNothingLeft, openStream, post, startTiny } from "./support.ts";

let cluster: LocalCluster;
beforeAll(async () => {
  cluster = await startTiny({ routers: 2, decode: 2 });
}, 60_000);
const standstill = new Standstill();
afterEach(() => standstill.end());
afterAll(() => cluster?.stop());

const routers = () => cluster.processes.filter(({ kind }) => kind === "router");

/** A router's fencing token; 0 while it stands by or is away. */
async function tokenOf({ grpcAddress }: ProcessHandle): Promise<number> {
  const client = createClient(RouterService, grpcAddress ?? "");
  try {
    return Number((await client.describeCluster({}, { deadlineMs: 5_000 })).leaderToken);
  } catch {
    return 0;
  } finally {
    client.channel.close();
  }
}

/** The one router of these that leads, once there is one: who stands still for longer than its lease is followed. */
async function leaderOf(candidates: readonly ProcessHandle[]): Promise<ProcessHandle> {
  let leaders: readonly ProcessHandle[] = [];
  const count = async () => {
    const tokens = await Promise.all(candidates.map(tokenOf));
    leaders = candidates.filter((_, index) => tokens[index] !== 0);
    return leaders.length;
  };
  await expect.poll(count, { timeout: 20_000, interval: 20 }).toBe(1);
  return leaders[0] as ProcessHandle;
}

/** Sends short requests one after the other until told to stop, and notes every status. */
function steadyRequests() {
  let isOver = false;
  const statuses: number[] = [];
  const run = async () => {
    while (!isOver) {
      const response = await post(cluster, chatBody("Who built the old mill?", { max_tokens: 8 }));
      await response.text();
      statuses.push(response.status);
    }
  };
  const runs = [run(), run()];
  return {
    /** Resolves when so many more have ended. */
    async more(count: number) {
      const enough = statuses.length + count;
      await expect.poll(() => statuses.length, { timeout: 20_000 }).toBeGreaterThanOrEqual(enough);
    },
    async stop() {
      isOver = true;
      await Promise.all(runs);
      return new Set(statuses);
    },
  };
}

test("kill -9 of the leader: the other one leads, no request fails, running streams never notice", async () => {
  const first = await leaderOf(routers());
  const others = routers().filter((router) => router !== first);
  const stream = await openStream(cluster, chatBody("Tell me about the sea.", { max_tokens: 1_200, ignore_eos: true }));
  for (let i = 0; i < 5; i++) await stream.next();
  const requests = steadyRequests();
  await requests.more(2);
  await first.kill("SIGKILL");
  await leaderOf(others);
  await requests.more(5);
  expect(await requests.stop()).toEqual(new Set([200]));
  for (let event = await stream.next(); event !== "done"; event = await stream.next()) {
    expect(event).not.toHaveProperty("error");
    expect(event).toBeDefined();
  }
  await first.restart();
  await expectNothingLeft(cluster);
}, 60_000);

test("a router that leads again after a pause places nothing: its placements are refused, and the new leader's are taken", async () => {
  const paused = await leaderOf(routers());
  const others = routers().filter((router) => router !== paused);
  const before = await tokenOf(paused);
  standstill.hold(paused.pid);
  expect(await tokenOf(await leaderOf(others))).toBeGreaterThan(before);
  const response = await post(cluster, chatBody("Who built the old mill?"));
  expect(response.status).toBe(200);
  standstill.end();
  const requests = steadyRequests();
  await requests.more(10);
  expect(await requests.stop()).toEqual(new Set([200]));
  // It stands by, or leads anew where the other one was followed in turn.
  await expect.poll(() => tokenOf(paused)).not.toBe(before);
  await expectNothingLeft(cluster);
}, 60_000);

test("a rolling restart of the routers under load fails no request", async () => {
  const requests = steadyRequests();
  for (const router of routers()) {
    await router.kill("SIGTERM");
    await router.restart();
    await leaderOf(routers());
  }
  await requests.more(5);
  expect(await requests.stop()).toEqual(new Set([200]));
  await expectNothingLeft(cluster);
}, 90_000);
