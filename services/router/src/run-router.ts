import { hostname } from "node:os";
import { announceReady, tlsFilesFrom, waitForEnd } from "@kvasir/config";
import { nanosFromMs, PREDICTION_DEFAULTS, PREFIX_INDEX_DEFAULTS } from "@kvasir/core";
import { RouterService } from "@kvasir/proto";
import { createServer, transportFrom } from "@kvasir/rpc";
import { connectState } from "@kvasir/state";
import { exposeCertificateExpiry, startAdminServer, startTelemetry } from "@kvasir/telemetry";
import { Gauge } from "prom-client";
import type { ROUTER_FLAGS } from "./flags.ts";
import { Router } from "./router.ts";
import { routerService } from "./router-service.ts";
import { ShareKeeper } from "./share-keeper.ts";

export type RouterValues = Extract<ReturnType<typeof ROUTER_FLAGS.parse>, { readonly kind: "values" }>["values"];

/** For the last status of streams that the router ended to reach their peers. */
const CLOSE_GRACE_MS = 200;
const POSITION_INTERVAL_MS = 1_000;

/** Serves until the process is asked to end. */
export async function runRouter(values: RouterValues): Promise<void> {
  const routerId = values.id ?? `router-${hostname()}-${process.pid}`;
  const end = waitForEnd(values.parentWatch);
  let isReady = false;
  // Nobody depends on a router that is not ready yet.
  void end.then(() => isReady || process.exit(0));
  const telemetry = startTelemetry({ service: "router", instanceId: routerId });
  const { logger } = telemetry;
  const transport = transportFrom(tlsFilesFrom(values), { role: "router", id: routerId }, logger);
  exposeCertificateExpiry(telemetry.registry, transport.certificates);
  const state = await connectState(values.redisUrl, values.cluster, { log: logger, tls: tlsFilesFrom(values) });
  const router = new Router(
    {
      queueMax: values.queueMax,
      queueTimeout: nanosFromMs(values.queueTimeoutMs),
      noWorkerGrace: nanosFromMs(values.noWorkerGraceMs),
      localPrefillAfter: nanosFromMs(values.localPrefillAfterMs),
      positionInterval: nanosFromMs(POSITION_INTERVAL_MS),
      ...(values.workerQueuePrompts === 0
        ? {}
        : { workerQueue: { promptCount: values.workerQueuePrompts, queueMaxMs: values.workerQueueMs } }),
      view: { silenceMax: nanosFromMs(values.workerSilenceMaxMs), returnGrace: nanosFromMs(values.noWorkerGraceMs) },
      prefixIndex: PREFIX_INDEX_DEFAULTS,
      prediction: { ...PREDICTION_DEFAULTS, kvBytesPerSecond: values.kvBytesPerSecond },
    },
    telemetry.registry,
    logger,
  );
  new Gauge({
    name: "kvasir_router_leader",
    help: "1 while this router leads, 0 while it stands by.",
    registers: [telemetry.registry],
    collect() {
      this.set(router.leaderToken > 0 ? 1 : 0);
    },
  });
  const server = createServer(transport);
  server.add(RouterService, routerService(router, telemetry.tracer));
  const address = await server.listen(values.listen);
  const admin = await startAdminServer({ listen: values.adminListen, telemetry, isReady: () => ({ ready: true }) });
  const registration = await state.register("router", routerId, {
    routerId,
    address: advertised(address, values.advertiseHost),
    adminAddress: advertised(admin.address, values.advertiseHost),
  });
  const shares = new ShareKeeper(router, state, logger);
  const leadership = state.lead("router", routerId, (token) => void shares.elected(token));
  isReady = true;
  announceReady({ service: "router", id: routerId, grpc: address, admin: admin.address });
  logger.info({ address, admin: admin.address, cluster: values.cluster }, "ready");

  const reason = await end;
  logger.info({ reason }, "stopping");
  await leadership.close();
  shares.close();
  await registration.close();
  router.close();
  await server.close(CLOSE_GRACE_MS);
  await admin.close();
  await state.close();
  await telemetry.close();
  process.exit(0);
}

/** An address that others can use: the port that was bound, on the advertised host. */
function advertised(bound: string, host: string | undefined): string {
  return host === undefined ? bound : `${host}:${bound.slice(bound.lastIndexOf(":") + 1)}`;
}
