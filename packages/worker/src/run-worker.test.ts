import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { ensureTinyModel } from "@kvasir/models";
import { type AttachRequest, RouterService } from "@kvasir/proto";
import { createServer, messages } from "@kvasir/rpc";
import { connectState, type State } from "@kvasir/state";
import { startTestRedis, type TestRedis } from "@kvasir/testkit/redis";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { generate } from "./testing/harness.ts";
import { eventually } from "./testing/quiet.ts";
import { SIDECAR_BINARY } from "./testing/real-worker.ts";

interface Service {
  readonly child: ChildProcess;
  readonly ready: { readonly grpc: string; readonly admin: string; readonly id: string };
  readonly exit: Promise<number | null>;
}

const root = fileURLToPath(new URL("../../..", import.meta.url));

describe.skipIf(!existsSync(SIDECAR_BINARY))("the services as processes", () => {
  const children: ChildProcess[] = [];
  let redis: TestRedis;
  let state: State;
  let model: string;

  beforeAll(async () => {
    model = await ensureTinyModel(join(root, ".cache/models"));
    redis = await startTestRedis();
    state = await connectState(redis.url, "test");
  });
  afterEach(() => {
    for (const child of children.splice(0)) child.kill("SIGKILL");
  });
  afterAll(async () => {
    await state?.close();
    await redis?.close();
  });

  async function start(service: string, id: string, ...flags: string[]): Promise<Service> {
    const stateDir = mkdtempSync(join(tmpdir(), "run-worker-"));
    const common = [
      "--redis-url",
      redis.url,
      "--cluster",
      "test",
      "--kv-bytes",
      "4MiB",
      "--threads",
      "1",
      "--state-dir",
      stateDir,
    ];
    const main = join(root, "services", service, "src/main.ts");
    const child = spawn(process.execPath, [main, "--id", id, "--model", model, "--parent-watch", ...common, ...flags], {
      stdio: ["pipe", "pipe", "ignore"],
    });
    children.push(child);
    const exit = once(child, "exit").then(([code]) => code as number | null);
    const line = once(createInterface({ input: child.stdout }), "line").then(([text]) => String(text));
    const first = await Promise.race([line, exit]);
    if (typeof first !== "string") throw new Error(`${service} ended with code ${first} before it was ready`);
    return { child, ready: JSON.parse(first), exit };
  }

  test("a worker says that it is ready, joins, attaches, answers its probes, and leaves in order on SIGTERM", async () => {
    const attached: AttachRequest[] = [];
    const router = createServer();
    router.add(RouterService, {
      place: async () => undefined,
      describeCluster: async () => ({}),
      attach: async (call) => {
        for await (const request of messages(call)) attached.push(request);
      },
    });
    const routerAddress = await router.listen("127.0.0.1:0");
    const record = { routerId: "r", address: routerAddress, adminAddress: routerAddress };
    const registration = await state.register("router", "r", record);

    const { child, ready, exit } = await start("decode", "mixed-0", "--role", "mixed", "--served-model-name", "tiny");
    expect(ready).toMatchObject({ event: "ready", service: "decode", id: "mixed-0" });
    const [member] = await state.list("worker");
    expect(member).toMatchObject({ workerId: "mixed-0", role: "mixed", address: ready.grpc, model: "tiny" });
    await eventually(() => expect(attached.length).toBeGreaterThanOrEqual(2));
    expect(attached[0]?.kind).toMatchObject({
      case: "hello",
      value: { workerId: "mixed-0", model: "tiny", address: ready.grpc },
    });
    expect(attached[0]?.epoch).toBe(BigInt(member?.epoch ?? 0));

    const worker = { workerId: "mixed-0", epoch: attached[0]?.epoch ?? 0n, address: ready.grpc };
    const change = { placement: { mode: 1, decode: worker } };
    const { tokenIds, error } = await generate({ decode: { address: ready.grpc }, change }).result;
    expect(error).toBeUndefined();
    expect(tokenIds).toHaveLength(12);

    const metrics = await (await fetch(`http://${ready.admin}/metrics`)).text();
    expect(metrics).toContain("kvasir_sidecar_prompt_tokens_computed_total 40");
    expect(metrics).toContain('kvasir_blocks{state="orphaned"} 0');
    expect((await fetch(`http://${ready.admin}/ready`)).status).toBe(200);

    child.kill("SIGTERM");
    expect(await exit).toBe(0);
    await eventually(() => expect(attached.at(-1)?.kind.case).toBe("goodbye"));
    expect(await state.list("worker")).toEqual([]);
    await registration.close();
    await router.close(0);
  });

  test("a sidecar shares the fate of its worker, and a worker that of its launcher", async () => {
    const killed = await start("prefill", "prefill-0");
    const orphan = sidecarOf(killed.child);
    killed.child.kill("SIGKILL");
    await eventually(() => expect(isAlive(orphan)).toBe(false));

    const left = await start("decode", "decode-0");
    const sidecar = sidecarOf(left.child);
    left.child.stdin?.end();
    expect(await left.exit).toBe(0);
    await eventually(() => expect(isAlive(sidecar)).toBe(false));
  });

  test("a model that cannot be loaded is one clear end, not a loop", async () => {
    const missing = join(tmpdir(), "no-such-model");
    await expect(start("decode", "decode-1", "--model", missing)).rejects.toThrow(/ended with code [12]/);
  });
});

/** The child process of a worker. */
function sidecarOf(child: ChildProcess): number {
  const children = readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .filter((name) => parentOf(name) === child.pid);
  expect(children).toHaveLength(1);
  return Number(children[0]);
}

function parentOf(pid: string): number | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]);
  } catch {
    return undefined; // It ended in between.
  }
}

function isAlive(pid: number): boolean {
  return existsSync(`/proc/${pid}`) && !/State:\s+Z/.test(readFileSync(`/proc/${pid}/status`, "utf8"));
}
