import { hostname } from "node:os";
import { basename, resolve } from "node:path";
import { announceReady, runMain, tlsFilesFrom, waitForEnd } from "@kvasir/config";
import { type Transport, transportFrom } from "@kvasir/rpc";
import { connectState, type RegisteredRecord, type State } from "@kvasir/state";
import {
  type AdminServer,
  exposeCertificateExpiry,
  startAdminServer,
  startTelemetry,
  type Telemetry,
} from "@kvasir/telemetry";
import { AttachClient } from "./attach/attach-client.ts";
import { attachState } from "./attach/attach-state.ts";
import { workerFlags } from "./flags.ts";
import type { Incarnation } from "./incarnation.ts";
import { registerMetrics } from "./metrics.ts";
import { sidecarLauncher } from "./sidecar/sidecar-process.ts";
import { spanRecordFromSidecar } from "./sidecar-spans.ts";
import { socketPath } from "./socket-path.ts";
import { type Role, Worker } from "./worker.ts";

/** Tokens that the sidecar sizes its buffers for, at least. */
const STEP_TOKENS_SIDECAR_MIN = 2_048;

type Values = Extract<ReturnType<ReturnType<typeof workerFlags>["parse"]>, { readonly kind: "values" }>["values"];

/** The whole main of a worker service. `roles`: what it can be, its default first. */
export async function runWorker(service: "prefill" | "decode", roles: readonly [Role, ...Role[]]): Promise<void> {
  const summary = service === "prefill" ? "computes prompts and hands their KV over" : "generates tokens";
  await runMain(workerFlags(service, summary, roles), (values) => serve(service, values));
}

async function serve(service: string, values: Values): Promise<void> {
  const role = values.role as Role;
  const workerId = values.id ?? `${role}-${hostname()}-${process.pid}`;
  const end = waitForEnd(values.parentWatch);
  const telemetry = startTelemetry({ service, instanceId: workerId });
  const transport = transportFrom(tlsFilesFrom(values), { role, id: workerId }, telemetry.logger);
  exposeCertificateExpiry(telemetry.registry, transport.certificates);
  const state = await connectState(values.redisUrl, values.cluster, {
    log: telemetry.logger,
    tls: tlsFilesFrom(values),
  });
  const { promise: asked, resolve: askToDrain } = Promise.withResolvers<number>();
  const { worker, admin } = await start(values, role, workerId, telemetry, state, transport, askToDrain);
  const address = await Promise.race([worker.start(values.listen), end.then(() => undefined)]);
  // Asked to end while the model loads: our own end closes the sidecar's stdin, which ends it.
  if (address === undefined) process.exit(0);
  const reachable = advertised(address, values.advertiseHost);
  const adminAddress = advertised(admin.address, values.advertiseHost);
  const model = modelNameOf(values);
  const facts = { workerId, role, address: reachable, adminAddress, model };

  const attach = new AttachClient(
    () => worker.supervisor.current && attachState(worker.supervisor.current, facts, () => worker.isDraining),
    telemetry.logger,
    transport,
    (token) => worker.leaderSeen(token),
  );
  const unwatch = state.watch("router", (routers) => attach.setRouters(routers));
  worker.onLoad(() => attach.loadChanged());
  const first = worker.current;
  if (first === undefined) throw new Error("the sidecar was lost while the worker started");
  const registration = await state.register("worker", workerId, recordOf(first, facts));
  worker.supervisor.watch((incarnation) => {
    attach.incarnationChanged();
    // While there is none, the old record stands: its epoch is refused by whoever is asked with it.
    if (incarnation) void registration.update(recordOf(incarnation, facts));
  });
  announceReady({ service, id: workerId, grpc: address, admin: admin.address });
  telemetry.logger.info({ role, model, epoch: String(worker.current?.epoch), address }, "ready");

  const { reason, deadlineMs } = await Promise.race([
    end.then((reason) => ({ reason, deadlineMs: reason === "parent gone" ? 0 : values.drainTimeoutMs })),
    asked.then((deadlineMs) => ({ reason: "admin call", deadlineMs })),
  ]);
  telemetry.logger.info({ reason, deadlineMs, running: worker.workCount }, "draining");
  await worker.drain(deadlineMs);
  telemetry.logger.info({ reason, left: worker.workCount }, "stopping");
  unwatch();
  await attach.close();
  await registration.close();
  await worker.stop();
  await admin.close();
  await state.close();
  await telemetry.close();
  process.exit(0);
}

async function start(
  values: Values,
  role: Role,
  workerId: string,
  telemetry: Telemetry,
  state: State,
  transport: Transport,
  askToDrain: (deadlineMs: number) => void,
): Promise<{ worker: Worker; admin: AdminServer }> {
  const launch = sidecarLauncher(
    {
      binary: values.sidecarBinary,
      role,
      workerId,
      model: values.model,
      socketPath: (epoch) => socketPath(values.stateDir, workerId, epoch),
      transferListen: values.transferListen,
      advertiseHost: values.advertiseHost,
      device: values.device,
      kvBytes: values.kvBytes,
      swapBytes: values.swapBytes,
      kvMemoryPercent: values.kvMemoryPercent,
      deterministic: values.deterministic,
      blockSize: Number(values.blockSize),
      kvDtype: values.kvDtype,
      shards: values.shards,
      codecProfile: values.codecProfile,
      weights: values.weights,
      threads: values.threads,
      cpus: values.cpus,
      tls: tlsFilesFrom(values),
      stepTokenMax: Math.max(STEP_TOKENS_SIDECAR_MIN, values.stepTokens),
    },
    telemetry.logger,
  );
  const metrics = registerMetrics(
    telemetry.registry,
    modelNameOf(values),
    () => worker.supervisor.current,
    () => worker.supervisor.restartCount,
  );
  const worker: Worker = new Worker({
    workerId,
    role,
    transport,
    launch,
    nextEpoch: () => state.nextEpoch(),
    limits: {
      stepTokenCount: values.stepTokens,
      sequenceCountMax: values.maxSequences,
      pinnedShareMax: values.pinnedPercentMax / 100,
      waitingCountMax: values.maxWaiting,
      cachesPrefixes: values.prefixCaching === "on",
    },
    leaseMs: values.leaseMs,
    admissionWaitMs: values.admissionWaitMs,
    stepStallMs: values.stepStallMs,
    tracer: telemetry.tracer,
    log: telemetry.logger,
    onStep: metrics.stepAnswered,
    onLocalPrefill: metrics.localPrefill,
    requests: metrics.requests,
  });
  const admin = await startAdminServer({
    listen: values.adminListen,
    telemetry,
    isReady() {
      if (worker.isDraining) return { ready: false, reason: "the worker is draining" };
      return worker.current ? { ready: true } : { ready: false, reason: "the sidecar is not running" };
    },
    drain: {
      state: () => ({ state: worker.isDraining ? "draining" : "serving", running: worker.workCount }),
      start: (deadlineMs = values.drainTimeoutMs) => askToDrain(deadlineMs),
    },
    clearCache: () => worker.supervisor.current?.clearCache() ?? 0,
    extraSpans: async (traceId) => {
      const spans = (await worker.supervisor.current?.kernel.spans(traceId)) ?? [];
      return spans.map((span) => spanRecordFromSidecar(span, `${workerId}-sidecar`));
    },
  });
  return { worker, admin };
}

function modelNameOf(values: Values): string {
  return values.servedModelName ?? basename(resolve(values.model));
}

function recordOf(
  incarnation: Incarnation,
  facts: { workerId: string; role: Role; address: string; adminAddress: string; model: string },
): RegisteredRecord<"worker"> {
  const fingerprint = Buffer.from(incarnation.layout.fingerprint).toString("hex");
  return { ...facts, epoch: Number(incarnation.epoch), fingerprint };
}

/** An address that others can use: the port that was bound, on the advertised host. */
function advertised(bound: string, host: string | undefined): string {
  return host === undefined ? bound : `${host}:${bound.slice(bound.lastIndexOf(":") + 1)}`;
}
