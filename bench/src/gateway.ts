import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { DecodeService, GenerateRequestSchema } from "@kvasir/proto";
import { createClient, messages } from "@kvasir/rpc";
import { startTestRedis } from "@kvasir/testkit/redis";
import { cpuTimeMs } from "./lib/cpu-time.ts";
import { startPacedOpenAi } from "./lib/paced-openai.ts";
import { startPacedWorker } from "./lib/paced-worker.ts";
import { startSglangGateway } from "./lib/peer-gateway.ts";
import { median, option, percentile, publish, REPOSITORY, table } from "./lib/report.ts";
import { startService } from "./lib/service.ts";
import { keepAliveAgent, type LoadResult, runLoad, type StreamTimes, streamOnce } from "./lib/sse-load.ts";

// What the gateway and the router add to a stream of tokens, and what they cost. Tokens come by the clock (20 ms, then every 5 ms), so that
// only what stands before the worker is measured; the same pace serves the direct gRPC stream, ours, and SGLang's gateway.
const STREAMS = 64;
const TOKENS = 64;
const REQUESTS = Number(option("requests", "1280"));
const PACE = { firstTokenMs: 20, gapMs: 5 };
const MODEL = "tiny";

const ownRedis = process.env.REDIS_URL ? undefined : await startTestRedis();
const redisUrl = process.env.REDIS_URL ?? ownRedis?.url ?? "";
const modelDir = join(REPOSITORY, ".cache", "models", "tiny");
const cluster = `bench-${process.pid}`;
const prompt = "Tell me about the old mill. ".repeat(8);
const body = JSON.stringify({
  model: MODEL,
  messages: [{ role: "user", content: prompt }],
  max_tokens: TOKENS,
  temperature: 0,
  ignore_eos: true,
  stream: true,
});
const peerBody = JSON.stringify({
  model: MODEL,
  messages: [{ role: "user", content: prompt }],
  max_tokens: TOKENS,
  stream: true,
});

const agent = keepAliveAgent(STREAMS);
const agentOne = keepAliveAgent(1);
const worker = await startPacedWorker(PACE);
const common = [
  "--redis-url",
  redisUrl,
  "--cluster",
  cluster,
  "--admin-listen",
  "127.0.0.1:0",
  "--listen",
  "127.0.0.1:0",
];
const router = await startService("services/router/src/main.ts", common);
const gateway = await startService("services/gateway/src/main.ts", [
  ...common,
  ...["--model", modelDir, "--served-model-name", MODEL],
]);
const upstream = await startPacedOpenAi(PACE, MODEL);
const peer = await startSglangGateway(upstream.url);

try {
  await worker.attach(router.ready.grpc ?? "", MODEL, 2048);
  const address = gateway.ready.http ?? gateway.ready.grpc ?? "";
  const ours = new URL(`http://${address}/v1/chat/completions`);
  const direct = createClient(DecodeService, worker.address);
  const rows: string[][] = [];

  await runLoad(STREAMS * 2, STREAMS, () => streamOnce(ours, body, keepAliveAgent(1)));
  const directResult = await runLoad(REQUESTS, STREAMS, () => directStream(direct));
  rows.push(row("direct gRPC stream to the worker", directResult, directResult, []));
  const one = await runLoad(32, 1, () => streamOnce(ours, body, agentOne));
  const oneDirect = await runLoad(32, 1, () => directStream(direct));

  const oursBefore = [cpuTimeMs(gateway.pid), cpuTimeMs(router.pid)];
  const oursResult = await runLoad(REQUESTS, STREAMS, () => streamOnce(ours, body, agent));
  const oursCpu = [cpuTimeMs(gateway.pid) - (oursBefore[0] ?? 0), cpuTimeMs(router.pid) - (oursBefore[1] ?? 0)];
  rows.push(row("Kvasir gateway + router", oursResult, directResult, oursCpu));

  if (peer) {
    const url = new URL(`${peer.url}/v1/chat/completions`);
    await runLoad(STREAMS * 2, STREAMS, () => streamOnce(url, peerBody, keepAliveAgent(1)));
    const direct = await runLoad(REQUESTS, STREAMS, () =>
      streamOnce(new URL(`${upstream.url}/v1/chat/completions`), peerBody, agent),
    );
    rows.push(row("direct HTTP stream to the upstream", direct, direct, []));
    const before = cpuTimeMs(peer.pid);
    const result = await runLoad(REQUESTS, STREAMS, () => streamOnce(url, peerBody, agent));
    rows.push(row(peer.name, result, direct, [cpuTimeMs(peer.pid) - before]));
  }

  const header = [
    "path",
    "requests/s",
    "TTFT p50 ms",
    "TTFT p99 ms",
    "added TTFT p50 ms",
    "CPU ms/request",
    "of which",
  ];
  publish(
    "gateway",
    "What the gateway and the router add",
    `${STREAMS} streams at a time of ${TOKENS} tokens, ${REQUESTS} requests; the upstream's first token comes after ${PACE.firstTokenMs} ms, then one every ${PACE.gapMs} ms.
Every event is a token; the load generator and the upstream share the machine.

${table(header, rows)}

One stream at a time: TTFT p50 ${ms(median(one.streams.map((s) => s.ttftMs)))} ms through gateway and router, ${ms(median(oneDirect.streams.map((s) => s.ttftMs)))} ms direct.
${peer ? "" : "\nSGLang's gateway was not there to compare with: its package could not be installed."}`,
  );
} finally {
  peer?.stop();
  upstream.close();
  await gateway.stop();
  await router.stop();
  await worker.close();
  await ownRedis?.close();
}
process.exit(0);

function row(name: string, result: LoadResult, direct: LoadResult, cpuMs: readonly number[]): string[] {
  const ttft = result.streams.map((stream) => stream.ttftMs);
  const directTtft = direct.streams.map((stream) => stream.ttftMs);
  const total = cpuMs.reduce((sum, value) => sum + value, 0);
  return [
    name,
    (result.streams.length / (result.wallMs / 1000)).toFixed(0),
    ms(percentile(ttft, 50)),
    ms(percentile(ttft, 99)),
    result === direct ? "–" : ms(percentile(ttft, 50) - percentile(directTtft, 50)),
    cpuMs.length === 0 ? "–" : (total / result.streams.length).toFixed(2),
    cpuMs.length < 2 ? "–" : cpuMs.map((value) => (value / result.streams.length).toFixed(2)).join(" + "),
  ];
}

async function directStream(client: ReturnType<typeof createClient<typeof DecodeService>>): Promise<StreamTimes> {
  const start = performance.now();
  let first = Number.NaN;
  let events = 0;
  const request = create(GenerateRequestSchema, {
    requestId: "direct",
    promptTokenIds: Array.from({ length: 64 }, (_, i) => 300 + i),
    sampling: { maxTokens: TOKENS },
  });
  for await (const message of messages(client.generate(request))) {
    if (message.kind.case !== "tokens") continue;
    if (Number.isNaN(first)) first = performance.now();
    events += message.kind.value.tokens.length;
  }
  return { ttftMs: first - start, totalMs: performance.now() - start, events };
}

function ms(value: number): string {
  return value.toFixed(1);
}
