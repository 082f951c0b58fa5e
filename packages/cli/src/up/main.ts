import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { runMain } from "@kvasir/config";
import { resolveModel } from "@kvasir/models";
import { renderTimeline, type SpanRecord } from "@kvasir/telemetry";
import { findTraceBackend, type TraceBackend } from "../jaeger/running-jaeger.ts";
import { issuedFiles } from "../local-cluster/certificates.ts";
import type { ClusterEvent } from "../local-cluster/cluster-options.ts";
import { type LocalCluster, OPERATOR, startLocalCluster } from "../local-cluster/local-cluster.ts";
import { ask } from "./ask.ts";
import { checkPortIsFree } from "./check-port.ts";
import { UP_FLAGS, type UpValues } from "./flags.ts";
import { DOCUMENTS, MAX_TOKENS, QUESTION } from "./question.ts";
import { clientLines, reportLines } from "./report.ts";
import { watchForStop } from "./stop-request.ts";

const CACHE = process.env.KVASIR_CACHE || join(import.meta.dirname, "../../../../.cache");
const RUN_DIR = join(CACHE, "run");
const TLS_DIR = join(CACHE, "run/tls");
/** Spans reach the services' memory when they end, which may be just after the client has its answer. */
const SPANS_WAIT_MAX_MS = 2_000;
const CLUSTER = "local";

const print = (text: string): void => void process.stdout.write(`${text}\n`);

await runMain(UP_FLAGS, up);

async function up(values: UpValues): Promise<void> {
  checkSizes(values);
  if (values.port !== 0) await checkPortIsFree(values.port, "npm run up -- --port");
  let cluster: LocalCluster | undefined;
  const stop = watchForStop(() => {
    cluster?.kill();
    process.exit(130);
  });
  const begin = performance.now();
  const model = await resolveModel(values.model, CACHE, (line) => print(`  ${line}`));
  const traces = await findTraceBackend(RUN_DIR, process.env);
  print(
    traces
      ? `spans go to ${traces.otlpEndpoint}`
      : "spans stay in the services; npm run jaeger, started before, shows them",
  );
  try {
    cluster = await start(values, model, traces, stop.signal);
  } catch (error) {
    if (stop.signal.aborted) process.exit(130);
    throw error;
  }
  const clusterFile = join(RUN_DIR, "cluster.json");
  const { redisUrl, gatewayUrl } = cluster;
  const tls = values.tls ? issuedFiles(TLS_DIR, OPERATOR.id) : undefined;
  writeFileSync(clusterFile, `${JSON.stringify({ redisUrl, cluster: cluster.cluster, gatewayUrl, tls }, null, 2)}\n`);
  print(`${model.servedName} is served at ${gatewayUrl} after ${((performance.now() - begin) / 1000).toFixed(1)} s\n`);

  let exitCode = 0;
  try {
    await askAndReport(cluster, model.servedName, traces?.uiUrl, stop.signal);
  } catch (error) {
    if (!stop.signal.aborted) {
      exitCode = 1;
      print(`the question failed: ${error instanceof Error ? error.message : String(error)}`);
    }
  }
  if (!values.once) {
    if (!stop.signal.aborted) print("\nCtrl-C ends it.");
    await stop.requested;
  }
  print("stopping");
  await cluster.stop();
  rmSync(clusterFile, { force: true });
  print("stopped; no process is left");
  process.exit(exitCode);
}

async function start(
  values: UpValues,
  model: { readonly directory: string; readonly servedName: string },
  traces: TraceBackend | undefined,
  signal: AbortSignal,
): Promise<LocalCluster> {
  mkdirSync(RUN_DIR, { recursive: true });
  return startLocalCluster({
    model: model.directory,
    servedModelName: model.servedName,
    routers: values.routers,
    prefill: values.prefill,
    decode: values.decode,
    mixed: values.mixed,
    stores: values.stores,
    storeDirectory: join(RUN_DIR, "stores"),
    port: values.port,
    // A Redis that runs may hold a cluster of the same name already: ours has a name of its own there.
    ...(process.env.REDIS_URL ? { redisUrl: process.env.REDIS_URL, cluster: `${CLUSTER}-${process.pid}` } : {}),
    logDir: join(RUN_DIR, "logs"),
    device: values.device,
    ...(values.kvBytes === undefined ? {} : { kvBytes: `${values.kvBytes}` }),
    kvMemoryPercent:
      values.kvMemoryPercent ?? Math.max(1, Math.floor(90 / (values.prefill + values.decode + values.mixed))),
    codecProfile: values.codecProfile,
    blockSize: Number(values.blockSize),
    kvDtype: values.kvDtype,
    shards: values.shards,
    kvByRole: {
      prefill: {
        ...(values.prefillBlockSize === undefined ? {} : { blockSize: Number(values.prefillBlockSize) }),
        ...(values.prefillKvDtype === undefined ? {} : { kvDtype: values.prefillKvDtype }),
        ...(values.prefillShards === undefined ? {} : { shards: values.prefillShards }),
      },
    },
    weights: values.weights,
    ...(values.threads === undefined ? {} : { threadsPerSidecar: values.threads }),
    ...(traces === undefined ? {} : { otlpEndpoint: traces.otlpEndpoint }),
    ...(values.tls ? { tlsDirectory: TLS_DIR } : {}),
    restart: true,
    signal,
    onEvent: (event) => {
      if (!signal.aborted) print(eventLine(event));
    },
  });
}

async function askAndReport(
  cluster: LocalCluster,
  model: string,
  tracesUrl: string | undefined,
  signal: AbortSignal,
): Promise<void> {
  for (const { title, text } of DOCUMENTS) print(`document · ${title}: ${text}`);
  print(`question · ${QUESTION}`);
  process.stdout.write("answer   · ");
  const messages = [{ role: "user", content: QUESTION }];
  const request = { model, messages, documents: DOCUMENTS, max_tokens: MAX_TOKENS, temperature: 0 };
  const answer = await ask(
    cluster.gatewayUrl,
    request,
    (text) => process.stdout.write(text),
    () => performance.now(),
  );
  if (signal.aborted) return;
  print(`\n\n${reportLines(answer).join("\n")}\n`);
  print(renderTimeline(await spansOf(cluster, answer.kvasir.trace_id)));
  const { curl, node } = clientLines(cluster.gatewayUrl, model);
  print(`Ask it yourself:\n\n${curl}\n\nor, with OpenAI's client for Node:\n\n${node}`);
  print(`\nThe timeline of any request: npm run trace -- ${answer.kvasir.trace_id}`);
  if (tracesUrl !== undefined) print(`The same in Jaeger: ${tracesUrl}/trace/${answer.kvasir.trace_id}`);
}

async function spansOf(cluster: LocalCluster, traceId: string): Promise<readonly SpanRecord[]> {
  const deadline = performance.now() + SPANS_WAIT_MAX_MS;
  for (;;) {
    const spans = await cluster.spans(traceId);
    const ids = new Set(spans.map((span) => span.spanId));
    const isWhole = spans.length > 0 && spans.every(({ parentSpanId }) => parentSpanId === "" || ids.has(parentSpanId));
    if (isWhole || performance.now() > deadline) return spans;
    await delay(20);
  }
}

function eventLine(event: ClusterEvent): string {
  switch (event.kind) {
    case "started":
      return `✓ ${event.name} ${(event.ms / 1000).toFixed(1)} s`;
    case "lost":
      return `! ${event.name} was lost (${event.how}); starting it again${event.errors ? `\n${event.errors}` : ""}`;
    case "restarted":
      return `✓ ${event.name} is back`;
  }
}

function checkSizes({ prefill, decode, mixed }: UpValues): void {
  if (mixed === 0 && (prefill === 0 || decode === 0)) {
    throw new Error(
      `--prefill ${prefill} --decode ${decode} --mixed ${mixed} can serve nothing: it takes one prefill and one decode worker, or a mixed one`,
    );
  }
}
