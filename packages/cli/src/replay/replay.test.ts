import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DEVICE_PROFILES, type DeviceProfile, rolesOf, SIMULATION_DEFAULTS, simulate } from "@kvasir/sim";
import { afterEach, expect, test } from "vitest";
import { htmlReport } from "./html-report.ts";
import { replayLive } from "./replay-live.ts";
import { type ReplayRecord, replaySummary } from "./replay-record.ts";
import { readTrace } from "./trace-file.ts";

const closers: (() => void)[] = [];
afterEach(() => {
  for (const close of closers.splice(0)) close();
});

interface Body {
  readonly prompt: number[];
  readonly max_tokens: number;
  readonly kvasir?: { readonly slo: object };
}

/** Answers each request after 20 ms with its tokens, and refuses those that ask for one token. */
async function startGateway(): Promise<{ url: string; bodies: Body[] }> {
  const bodies: Body[] = [];
  const server = createServer(async (request, response) => {
    const parts: Buffer[] = [];
    for await (const part of request) parts.push(part as Buffer);
    const body = JSON.parse(Buffer.concat(parts).toString("utf8")) as Body;
    bodies.push(body);
    if (body.max_tokens === 1) {
      response.writeHead(429);
      response.end('{"error":{"code":"overloaded"}}');
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
    response.writeHead(200, { "content-type": "text/event-stream", "x-request-id": `r${body.max_tokens}` });
    for (let index = 0; index < body.max_tokens; index++) response.write('data: {"choices":[{"text":"a"}]}\n\n');
    const kvasir = '{"prefill_worker":"p0","decode_worker":"d0","placement_reason":"why"}';
    response.write(`data: {"choices":[],"usage":{"completion_tokens":${body.max_tokens}},"kvasir":${kvasir}}\n\n`);
    response.end("data: [DONE]\n\n");
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  closers.push(() => server.close());
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, bodies };
}

const request = (arrivalMs: number, outputTokenCount: number, prefixIds: number[]) => ({
  arrivalMs,
  promptTokenCount: 24,
  outputTokenCount,
  prefixIds,
  tenant: "t",
});

test("requests are sent at their times with prompts that share what the trace's share, and refusals are told apart", async () => {
  const { url, bodies } = await startGateway();
  const requests = [request(0, 5, [1, 2, 3]), request(30, 3, [1, 2, 4]), request(40, 1, [])];
  const trace = { name: "t", requests, prefixBlockSize: 8 };
  const targets = { ttftMs: 1_000, tpotMs: 50 };
  const records = await replayLive(trace, {
    url,
    model: "m",
    tokenBase: 300,
    tokenRange: 500,
    salt: 1,
    targets,
    timeoutMs: 5_000,
  });
  expect(records.map(({ outcome, tokenCount }) => [outcome, tokenCount])).toEqual([
    ["finished", 5],
    ["finished", 3],
    ["refused", 0],
  ]);
  expect(records[0]).toMatchObject({ requestId: "r5", prefillWorker: "p0", worker: "d0", reason: "why" });
  expect(replaySummary(records, targets)).toMatch(/slowest first token: .* npm run kvasir -- explain r[35]\n/);
  expect(records[0]?.ttftMs).toBeGreaterThanOrEqual(19);
  const [a, b] = bodies;
  expect(a?.prompt.slice(0, 16)).toEqual(b?.prompt.slice(0, 16));
  expect(a?.prompt.slice(16)).not.toEqual(b?.prompt.slice(16));
  const options = { url, model: "m", tokenBase: 300, tokenRange: 500, salt: 2, targets, timeoutMs: 5_000 };
  await replayLive({ ...trace, requests: requests.slice(0, 1) }, options);
  expect(bodies.at(-1)?.prompt).toHaveLength(24);
  expect(bodies.at(-1)?.prompt.slice(0, 8)).not.toEqual(a?.prompt.slice(0, 8));
  expect(a?.kvasir).toEqual({ slo: { ttft_ms: 1_000, tpot_ms: 50 } });
});

test("a trace's lengths are scaled, and what shares nothing, or shares blocks of any length, is simulated", () => {
  const folder = mkdtempSync(join(tmpdir(), "kvasir-trace-"));
  const azure = join(folder, "azure.csv");
  writeFileSync(
    azure,
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00.0,1000,20\n2023-11-16 18:00:01.0,800,10\n",
  );
  const mooncake = join(folder, "mooncake.jsonl");
  const row = (timestamp: number) =>
    JSON.stringify({ timestamp, input_length: 1_536, output_length: 10, hash_ids: [1, 2, 3] });
  writeFileSync(mooncake, `${row(0)}\n${row(20_000)}\n`);
  const run = (file: string) => {
    const trace = readTrace({ file, rate: 1, count: 0, lengths: 0.1 });
    const profile = DEVICE_PROFILES["h100-8b"] as DeviceProfile;
    return simulate({ ...SIMULATION_DEFAULTS, profile, roles: rolesOf({ mixed: 1 }), blockSize: 32 }, trace).requests;
  };
  expect(run(azure).map(({ trace }) => [trace.promptTokenCount, trace.outputTokenCount])).toEqual([
    [100, 2],
    [80, 1],
  ]);
  // 154 tokens: four whole blocks of 32.
  expect(run(mooncake).map(({ cachedTokenCount }) => cachedTokenCount)).toEqual([0, 128]);
  rmSync(folder, { recursive: true });
});

test("the summary counts what met both targets, the report shows it with plots", () => {
  const record = (extra: Partial<ReplayRecord>): ReplayRecord => ({
    ...{ arrivalMs: 0, promptTokenCount: 9, requestId: "", outcome: "finished", ttftMs: 100, tpotMs: 10 },
    ...{ tokenCount: 4, prefillWorker: "p0", worker: "<d0>", reason: "", ...extra },
  });
  const records = [
    record({}),
    record({ arrivalMs: 500, ttftMs: 900 }),
    record({ arrivalMs: 900, tpotMs: 99 }),
    record({ arrivalMs: 1_000, outcome: "refused", ttftMs: Number.NaN }),
  ];
  const targets = { ttftMs: 500, tpotMs: 50 };
  expect(replaySummary(records, targets)).toContain(
    "25.0 % met TTFT ≤ 500 ms and mean TBT ≤ 50 ms: 1.00 good requests/s",
  );
  const html = htmlReport("a & b", records, targets, [
    { rate: 1, attainment: 1 },
    { rate: 2, attainment: 0.25 },
  ]);
  // TTFT, TBT, attainment by time and by rate, requests that wait, requests in flight.
  expect(html.match(/<polyline/g)).toHaveLength(6);
  expect(html).toContain("by requests per second");
  // Counts are steps: each point has the time or the count of the one before.
  const waiting = /wait for their first token.*?<polyline points="([^"]*)"/s.exec(html)?.[1] ?? "";
  const points = waiting.split(" ").map((point) => point.split(","));
  expect(points.length).toBeGreaterThan(6);
  for (const [index, [x, y]] of points.entries()) {
    const [beforeX, beforeY] = points[index - 1] ?? [x, y];
    expect(x === beforeX || y === beforeY).toBe(true);
  }
  expect(html).toContain("&lt;d0>");
  // A row for the prefill and one for the decode worker.
  expect(html.match(/<g class="row"/g)).toHaveLength(2);
  expect(html).not.toContain("NaN");
});
