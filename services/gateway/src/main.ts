import { hostname } from "node:os";
import { basename, resolve } from "node:path";
import {
  announceReady,
  defineOptions,
  type OptionValues,
  runMain,
  TLS_OPTIONS,
  tlsFilesFrom,
  waitForEnd,
} from "@kvasir/config";
import { transportFrom } from "@kvasir/rpc";
import { connectState } from "@kvasir/state";
import { exposeCertificateExpiry, startAdminServer, startTelemetry } from "@kvasir/telemetry";
import { loadModelFacts, loadTokenizer } from "@kvasir/tokenizer";
import { createMetrics } from "./metrics.ts";
import { answerPins } from "./pins.ts";
import { loadPolicies, NO_POLICIES } from "./policies.ts";
import { longestTokenBytes, type ServedModel } from "./prepare.ts";
import { RunningRequests } from "./running-requests.ts";
import { buildServer } from "./server.ts";
import { DecodeClients } from "./upstream/decode-clients.ts";
import { RouterLink } from "./upstream/router-link.ts";

const SPECS = {
  id: { type: "string", env: "KVASIR_ID", help: "name of this gateway, unique in the cluster; default: host and pid" },
  listen: { type: "address", env: "KVASIR_LISTEN", default: "127.0.0.1:8000", help: "where clients connect (HTTP)" },
  adminListen: { type: "address", env: "KVASIR_ADMIN_LISTEN", default: "127.0.0.1:0", help: "probes, metrics, traces" },
  model: { type: "string", env: "KVASIR_MODEL", required: true, help: "model directory: tokenizer, template, config" },
  servedModelName: {
    type: "string",
    env: "KVASIR_SERVED_MODEL_NAME",
    help: "name clients use; default: the directory's",
  },
  redisUrl: {
    type: "string",
    env: "KVASIR_REDIS_URL",
    default: "redis://127.0.0.1:6379",
    help: "state of the cluster",
  },
  cluster: { type: "string", env: "KVASIR_CLUSTER", default: "local", help: "cluster to belong to" },
  tenantSecret: {
    type: "string",
    env: "KVASIR_TENANT_SECRET",
    default: "local",
    help: "derives tenant scopes; the same on each gateway",
  },
  sloTtftMs: {
    type: "integer",
    env: "KVASIR_SLO_TTFT_MS",
    default: 0,
    min: 0,
    help: "target for the first token of requests that name none; what cannot meet it is refused early; 0: no target",
  },
  sloTpotMs: {
    type: "integer",
    env: "KVASIR_SLO_TPOT_MS",
    default: 0,
    min: 0,
    help: "target for the mean gap between tokens of requests that name none; 0: no target",
  },
  sloOnMiss: {
    type: "string",
    env: "KVASIR_SLO_ON_MISS",
    default: "reject",
    choices: ["reject", "best_effort"],
    help: "what becomes of requests that cannot meet their targets, unless they say otherwise: refused, or served after others",
  },
  policies: {
    type: "string",
    env: "KVASIR_POLICIES",
    help: "JSON file with shares, tiers and targets of tenants, and targets of models; default: all are alike, and each API key is a tenant",
  },
  bodyLimit: { type: "bytes", env: "KVASIR_BODY_LIMIT", default: "8MiB", help: "largest request body" },
  requestTimeoutMs: {
    type: "integer",
    env: "KVASIR_REQUEST_TIMEOUT_MS",
    default: 600_000,
    min: 1,
    help: "longest request",
  },
  stallTimeoutMs: {
    type: "integer",
    env: "KVASIR_STALL_TIMEOUT_MS",
    default: 30_000,
    min: 1,
    help: "longest silence of a worker",
  },
  resumeTimeoutMs: {
    type: "integer",
    env: "KVASIR_RESUME_TIMEOUT_MS",
    default: 15_000,
    min: 1,
    help: "longest wait for another placement when a worker was lost",
  },
  stopGraceMs: {
    type: "integer",
    env: "KVASIR_STOP_GRACE_MS",
    default: 5_000,
    min: 0,
    help: "time for running requests to end after SIGTERM",
  },
  ...TLS_OPTIONS,
  parentWatch: { type: "boolean", env: "KVASIR_PARENT_WATCH", help: "end when stdin ends" },
} as const;

/** Time for the last words of requests that did not end in their grace. */
const TELL_MS = 500;

const options = defineOptions("kvasir-gateway", "OpenAI-compatible HTTP in front of the cluster", SPECS);
await runMain(options, serve);

async function serve(values: OptionValues<typeof SPECS>): Promise<void> {
  const end = waitForEnd(values.parentWatch);
  const policies = values.policies === undefined ? NO_POLICIES : loadPolicies(values.policies);
  const id = values.id ?? `gateway-${hostname()}-${process.pid}`;
  const telemetry = startTelemetry({ service: "gateway", instanceId: id });
  const transport = transportFrom(tlsFilesFrom(values), { role: "gateway", id }, telemetry.logger);
  exposeCertificateExpiry(telemetry.registry, transport.certificates);
  const tokenizer = await loadTokenizer(values.model);
  const model: ServedModel = {
    name: values.servedModelName ?? basename(resolve(values.model)),
    tokenizer,
    longestTokenBytes: longestTokenBytes(tokenizer),
    facts: await loadModelFacts(values.model),
    createdAtUnixS: Math.floor(Date.now() / 1000),
  };
  const state = await connectState(values.redisUrl, values.cluster, {
    log: telemetry.logger,
    tls: tlsFilesFrom(values),
  });
  const router = new RouterLink(state, transport);
  const decode = new DecodeClients(transport);
  const running = new RunningRequests();
  let stopping = false;
  const isReady = () => {
    if (stopping) return { ready: false, reason: "the gateway is stopping" };
    const cluster = router.cluster;
    if (cluster === undefined) return { ready: false, reason: "no router answers" };
    return cluster.ready ? { ready: true } : { ready: false, reason: cluster.notReadyReason };
  };
  const server = buildServer({
    model,
    upstream: { router, decode },
    telemetry,
    metrics: createMetrics(telemetry.registry),
    running,
    tenantSecret: values.tenantSecret,
    policies,
    slo: {
      ...(values.sloTtftMs > 0 ? { ttft_ms: values.sloTtftMs } : {}),
      ...(values.sloTpotMs > 0 ? { tpot_ms: values.sloTpotMs } : {}),
      on_miss: values.sloOnMiss,
    },
    requestTimeoutMs: values.requestTimeoutMs,
    stallTimeoutMs: values.stallTimeoutMs,
    resumeTimeoutMs: values.resumeTimeoutMs,
    bodyLimitBytes: values.bodyLimit,
    isReady,
    refresh: () => router.refresh(),
  });
  const colon = values.listen.lastIndexOf(":");
  const port = Number(values.listen.slice(colon + 1));
  const host = values.listen.slice(0, colon).replace(/^\[|\]$/g, "");
  await server.listen({ host, port }).catch((error: unknown) => {
    const why =
      error instanceof Error && "code" in error && error.code === "EADDRINUSE" ? "it is taken" : String(error);
    throw new Error(`cannot listen on ${values.listen}: ${why}; choose another --listen`);
  });
  const bound = server.server.address();
  const address = `${values.listen.slice(0, colon)}:${typeof bound === "object" && bound ? bound.port : port}`;
  const admin = await startAdminServer({
    ...{ listen: values.adminListen, telemetry, isReady },
    more: (request) =>
      answerPins(
        {
          ...{ model, tenantSecret: values.tenantSecret, bodyLimitBytes: values.bodyLimit, pins: state.pins },
          layouts: () => router.layoutsOf(model.name),
        },
        request,
      ),
  });
  const registration = await state.register("gateway", id, { gatewayId: id, address, adminAddress: admin.address });
  announceReady({ service: "gateway", id, http: address, admin: admin.address });
  telemetry.logger.info({ model: model.name, address }, "ready");

  const reason = await end;
  stopping = true;
  telemetry.logger.info({ reason, running: running.count }, "stopping");
  await registration.close();
  // Takes no more connections from here; those that wait between requests are closed.
  const closed = server.close();
  await running.drain(reason === "parent gone" ? 0 : values.stopGraceMs, TELL_MS);
  server.server.closeAllConnections();
  await closed;
  await admin.close();
  router.close();
  decode.close();
  await state.close();
  await telemetry.close();
  process.exit(0);
}
