import { spawn } from "node:child_process";
import { mkdir, mkdtemp, writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connectState, type State } from "@kvasir/state";
import type { SpanRecord } from "@kvasir/telemetry";
import { startTestRedis, type TestRedis } from "@kvasir/testkit/redis";
import { afterAll, beforeAll, expect, test } from "vitest";
import { collectTrace, findTraces, traceIdFromText } from "./collect-trace.ts";

const TRACE_ID = "0af7651916cd43dd8448eb211c80319c";

function span(
  spanId: string,
  parentSpanId: string,
  name: string,
  instance: string,
  extra: Partial<SpanRecord> = {},
): SpanRecord {
  return {
    traceId: TRACE_ID,
    spanId,
    parentSpanId,
    name,
    service: "test",
    instance,
    startUnixNanos: `${1_000_000n * BigInt(spanId)}`,
    endUnixNanos: `${1_000_000n * BigInt(spanId) + 5_000_000n}`,
    attributes: {},
    ...extra,
  };
}

test("spans of all services come together; who does not answer is named, nonsense is dropped", async () => {
  const answers: Record<string, unknown> = {
    a: [
      span("1", "", "root", "a"),
      { name: "no span" },
      null,
      span("7", "", "foreign", "a", { traceId: "f".repeat(32) }),
    ],
    b: [span("2", "1", "child", "b"), span("1", "", "root", "a")],
    c: { error: "x" },
  };
  const sources = ["a", "b", "c", "d"].map((name) => ({ name, adminAddress: `${name}:1` }));
  const collected = await collectTrace(sources, TRACE_ID, (url) => {
    const name = new URL(url).hostname;
    return name in answers ? Promise.resolve(answers[name]) : Promise.reject(new Error("refused"));
  });
  expect(collected.spans.map(({ name }) => name)).toEqual(["root", "child"]);
  expect(collected.missing).toEqual([
    { name: "c", why: "its answer is no list" },
    { name: "d", why: "refused" },
  ]);
});

test("a request's trace is found by its id and by that of its answer, the latest that each service knows", async () => {
  const asked: string[] = [];
  const answer = (url: string) => {
    asked.push(url);
    return url.startsWith("http://a:1/")
      ? Promise.resolve([TRACE_ID, "e".repeat(32)])
      : Promise.reject(new Error("gone"));
  };
  const sources = ["a", "b"].map((name) => ({ name, adminAddress: `${name}:1` }));
  for (const id of ["my request", "chatcmpl-my request", " cmpl-my request"]) {
    expect(await findTraces(sources, id, answer)).toEqual([TRACE_ID]);
  }
  expect(new Set(asked)).toEqual(new Set(["a", "b"].map((name) => `http://${name}:1/debug/requests/my%20request`)));
});

test("a trace id is understood bare, in upper case and within a traceparent", () => {
  for (const text of [TRACE_ID, ` ${TRACE_ID.toUpperCase()}\n`, `00-${TRACE_ID}-b7ad6b7169203331-01`]) {
    expect(traceIdFromText(text)).toBe(TRACE_ID);
  }
  expect(traceIdFromText("0af7")).toBeUndefined();
});

let redis: TestRedis;
let state: State;
let cache: string;
const servers: Server[] = [];
beforeAll(async () => {
  redis = await startTestRedis();
  state = await connectState(redis.url, "test");
  cache = await mkdtemp(join(tmpdir(), "kvasir-trace-"));
});
afterAll(async () => {
  for (const server of servers) server.close();
  await state.close();
  await redis.close();
});

async function service(spans: readonly SpanRecord[]): Promise<string> {
  const server = createServer((_, response) => response.end(JSON.stringify(spans)));
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return `127.0.0.1:${(server.address() as AddressInfo).port}`;
}

function trace(...argv: string[]): Promise<{ code: number | null; out: string; err: string }> {
  const script = join(import.meta.dirname, "../../../scripts/trace.mjs");
  const child = spawn(process.execPath, [script, ...argv], { env: { ...process.env, KVASIR_CACHE: cache } });
  let [out, err] = ["", ""];
  child.stdout.on("data", (chunk: Buffer) => (out += chunk));
  child.stderr.on("data", (chunk: Buffer) => (err += chunk));
  return new Promise((resolve) => child.on("close", (code) => resolve({ code, out, err })));
}

test("the command finds the services through Redis and prints the timeline, or says plainly that there is none", async () => {
  const flags = ["--redis-url", redis.url, "--cluster", "test"];
  expect(await trace(TRACE_ID, ...flags)).toMatchObject({
    code: 1,
    err: expect.stringContaining("no service is registered in cluster test"),
  });

  const worker = { role: "mixed" as const, epoch: 1, address: "h:1", model: "tiny", fingerprint: "00" };
  const routerAt = await service([span("2", "1", "router.place", "router-0")]);
  const gatewayAt = await service([span("1", "", "gateway.request", "gateway-0")]);
  await state.register("router", "router-0", { routerId: "router-0", address: "h:1", adminAddress: routerAt });
  await state.register("gateway", "gateway-0", { gatewayId: "gateway-0", address: "h:1", adminAddress: gatewayAt });
  const goneAt = await service([]);
  await new Promise((resolve) => servers.pop()?.close(resolve));
  await state.register("worker", "m0", { ...worker, workerId: "m0", adminAddress: goneAt });

  await mkdir(join(cache, "run"));
  await writeFile(join(cache, "run/cluster.json"), JSON.stringify({ redisUrl: redis.url, cluster: "test" }));
  const found = await trace(TRACE_ID);
  expect(found.err).toMatch(/^m0 did not answer, its spans are missing: .*ECONNREFUSED/);
  expect(found.out).toBe(`\
trace ${TRACE_ID}: 2 spans of 2 processes in 6.0 ms
  start ms    took ms
       0.0        5.0 |====================    | gateway.request gateway-0
       1.0        5.0 |    ====================|   router.place  router-0
`);
  expect(JSON.parse((await trace(TRACE_ID, "--json")).out)).toHaveLength(2);
  expect(await trace("nonsense")).toMatchObject({
    code: 1,
    err: expect.stringContaining('"nonsense" is no trace id and no id of a request that gateway-0, router-0 remember'),
  });
  expect(await trace("f".repeat(32))).toMatchObject({
    code: 1,
    err: expect.stringContaining(
      `none of gateway-0, router-0, m0 in cluster test at ${redis.url} has spans of trace ffff`,
    ),
  });
});

test("what services have forgotten, or took along when they ended, the Jaeger of npm run jaeger still tells", async () => {
  const ofRouter = { spanID: "3", operationName: "router.place", processID: "p", startTime: 3, duration: 5 };
  const references = [{ refType: "CHILD_OF", spanID: "1" }];
  const known = { ...ofRouter, spanID: "1", operationName: "gateway.request", references: [], tags: [] };
  const processes = { p: { serviceName: "kvasir-router", tags: [{ key: "service.instance.id", value: "router-9" }] } };
  const tags = [{ key: "kvasir.reason", value: "the only candidate" }];
  const data = [{ traceID: TRACE_ID, spans: [known, { ...ofRouter, references, tags }], processes }];
  const server = createServer((_, response) => response.end(JSON.stringify({ data })));
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const uiUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  await mkdir(join(cache, "run"), { recursive: true });
  await writeFile(join(cache, "run/jaeger.json"), JSON.stringify({ uiUrl, otlpEndpoint: "http://h:4317" }));

  const gatewayAt = await service([span("1", "", "gateway.request", "gateway-0")]);
  const gateway = { gatewayId: "gateway-0", address: "h:1", adminAddress: gatewayAt };
  const other = await connectState(redis.url, "restarted");
  await other.register("gateway", "gateway-0", gateway);
  const merged = await trace(TRACE_ID, "--redis-url", redis.url, "--cluster", "restarted", "--json");
  const spans = JSON.parse(merged.out) as SpanRecord[];
  expect(spans.map(({ name, instance }) => [name, instance])).toEqual([
    ["gateway.request", "gateway-0"],
    ["router.place", "router-9"],
  ]);
  await other.close();

  const alone = await trace("some-request", "--redis-url", redis.url, "--cluster", "gone");
  expect(alone.err).toMatch(/^no service is registered in cluster gone .*; only Jaeger is asked/);
  expect(alone.out).toContain(`trace ${TRACE_ID}: 2 spans`);
});
