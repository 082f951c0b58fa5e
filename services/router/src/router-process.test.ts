import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { connectState, type State } from "@kvasir/state";
import { startTestRedis, type TestRedis } from "@kvasir/testkit/redis";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { sharesFromText } from "./shares-text.ts";
import { eventually, FakePeers } from "./testing/fake-peers.ts";

const MAIN = new URL("./main.ts", import.meta.url).pathname;

let redis: TestRedis;
let state: State;
const children: ChildProcess[] = [];
beforeAll(async () => {
  redis = await startTestRedis();
  state = await connectState(redis.url, "test");
});
afterAll(async () => {
  await state.close();
  await redis.close();
});
afterEach(() => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
});

interface Ready {
  readonly event: string;
  readonly service: string;
  readonly id: string;
  readonly grpc: string;
  readonly admin: string;
}

async function startRouter(id = "router-0"): Promise<{ child: ChildProcess; ready: Ready }> {
  const argv = [MAIN, "--id", id, "--redis-url", redis.url, "--cluster", "test", "--parent-watch"];
  const child = spawn(process.execPath, argv, { stdio: ["pipe", "pipe", "ignore"] });
  children.push(child);
  let text = "";
  child.stdout?.on("data", (chunk: Buffer) => (text += chunk.toString()));
  await eventually(() => text.includes("\n") || child.exitCode !== null, 15_000);
  return { child, ready: JSON.parse(text.split("\n", 1)[0] ?? "") as Ready };
}

test("a real router registers, takes workers, places, answers its admin port, and leaves on SIGTERM", async () => {
  const { child, ready } = await startRouter();
  expect(ready).toMatchObject({ event: "ready", service: "router", id: "router-0" });
  expect(await state.list("router")).toEqual([
    { routerId: "router-0", address: ready.grpc, adminAddress: ready.admin },
  ]);

  const peers = new FakePeers(ready.grpc);
  const workers = [peers.worker("p0"), peers.worker("d0")];
  await Promise.all(workers.map((worker) => worker.hello().load().settled()));
  const request = peers.request(100, 20);
  expect((await request.placed()).decode?.workerId).toBe("d0");

  const get = async (path: string) => (await fetch(`http://${ready.admin}${path}`)).text();
  expect(await get("/ready")).toBe('{"ready":true}');
  expect(await get("/metrics")).toContain('kvasir_router_placements_total{mode="split"} 1');

  child.kill("SIGTERM");
  const [code] = (await once(child, "exit")) as [number | null];
  expect(code).toBe(0);
  expect(await state.list("router")).toEqual([]);
  const stopping = { reason: "unavailable", message: "the router is stopping; ask another" };
  expect(await request.ended).toMatchObject(stopping);
  expect(await workers[0]?.ended).toMatchObject(stopping);
  peers.close();
});

test("it ends with its parent, and before Redis ever answered", async () => {
  const { child } = await startRouter();
  child.stdin?.end();
  expect(await once(child, "exit")).toEqual([0, null]);

  const argv = [MAIN, "--redis-url", "redis://127.0.0.1:1", "--parent-watch"];
  const stuck = spawn(process.execPath, argv, { stdio: ["pipe", "ignore", "ignore"] });
  children.push(stuck);
  await new Promise((resolve) => setTimeout(resolve, 300));
  stuck.stdin?.end();
  expect(await once(stuck, "exit")).toEqual([0, null]);
});

test("placements go on while Redis is away, and the router is listed again when it returns", async () => {
  const { ready } = await startRouter();
  const peers = new FakePeers(ready.grpc);
  await peers.worker("m0").hello().load().settled();
  await redis.kill();
  expect((await peers.request(10, 10).placed()).decode?.workerId).toBe("m0");
  await redis.start();
  await eventually(async () => state.isConnected && (await state.list("router")).length === 1);
  peers.close();
});

test("a leader is killed: the next one knows what its tenants were served, and a greedy one is not even with a patient one", async () => {
  const routers = [await startRouter("router-a"), await startRouter("router-b")] as const;
  const peers = routers.map(({ ready }) => new FakePeers(ready.grpc)) as [FakePeers, FakePeers];
  const isLeader = async (index: 0 | 1) => (await peers[index].client.describeCluster({})).leaderToken > 0n;
  await eventually(async () => (await isLeader(0)) || (await isLeader(1)));
  const first = (await isLeader(0)) ? 0 : 1;
  const [before, after] = first === 0 ? peers : [peers[1], peers[0]];
  const [other, greedy, patient] = [1, 2, 3].map((fill) => ({ tenantScope: new Uint8Array(16).fill(fill) }));

  // One worker with room for one request. Two tenants wait side by side; one of them is served, and waits again.
  await before.worker("m0").hello().load().settled();
  const running = before.request(280, 40, other);
  await running.placed();
  const served = await before.request(280, 40, greedy).queued();
  await before.request(280, 40, patient).queued();
  running.stream.end();
  await served.placed();
  await before.request(280, 40, greedy).queued();
  await eventually(async () => {
    const [left] = sharesFromText((await state.left("router")) ?? "[]");
    const [most, least, ...others] = left?.shares.tenants.filter(({ isWaiting }) => isWaiting) ?? [];
    return others.length === 0 && (most?.counter ?? 0) > (least?.counter ?? Number.POSITIVE_INFINITY);
  });
  routers[first].child.kill("SIGKILL");
  await eventually(() => isLeader(first === 0 ? 1 : 0));

  // The worker is still busy, and the greedy tenant is the first to ask again.
  const worker = await after.worker("m0").hello().load({ freeBlocks: 0 }).settled();
  const greedyAgain = await after.request(280, 40, greedy).queued();
  const patientAgain = await after.request(280, 40, patient).queued();
  worker.load();
  await patientAgain.placed();
  expect(greedyAgain.placements).toEqual([]);
  for (const peer of peers) peer.close();
});
