import { hashBlocks, nanosFromMs, PREDICTION_DEFAULTS, prefixRoot, type RouterOptions } from "@kvasir/core";
import { RouterService } from "@kvasir/proto";
import { createServer, type RpcServer } from "@kvasir/rpc";
import { startTelemetry, type Telemetry } from "@kvasir/telemetry";
import { Router } from "../router.ts";
import { routerService } from "../router-service.ts";
import { FakePeers } from "./fake-peers.ts";

/** A router that leads, in this process, and clients of it. */
export interface TestRouter {
  readonly telemetry: Telemetry;
  readonly router: Router;
  readonly server: RpcServer;
  readonly peers: FakePeers;
}

/** What a test does not wait for is far away: a router that stands still meanwhile is none that is late. */
export async function startTestRouter(limits: Partial<RouterOptions> = {}): Promise<TestRouter> {
  const telemetry = startTelemetry({ service: "router", instanceId: "router-0", logLevel: "silent" });
  const router = new Router(
    {
      queueMax: 8,
      queueTimeout: nanosFromMs(60_000),
      noWorkerGrace: nanosFromMs(60_000),
      localPrefillAfter: nanosFromMs(200),
      positionInterval: nanosFromMs(50),
      view: { silenceMax: nanosFromMs(60_000), returnGrace: nanosFromMs(300) },
      prediction: PREDICTION_DEFAULTS,
      prefixIndex: { blockCapacity: 1_024, holderCapacity: 64 },
      ...limits,
    },
    telemetry.registry,
    telemetry.logger,
  );
  router.setLeaderToken(7);
  const server = createServer();
  server.add(RouterService, routerService(router, telemetry.tracer));
  const peers = new FakePeers(await server.listen("127.0.0.1:0"));
  return { telemetry, router, server, peers };
}

/** Of a prompt of 100 tokens in the layout of `FakeWorker`: three full blocks. */
export const HASHES = hashBlocks(
  prefixRoot({ tenantScope: new Uint8Array(16), fingerprint: new Uint8Array(16).fill(7) }, 32),
  Array.from({ length: 100 }, (_, index) => index),
  32,
);
export const promptHashes = [{ exactFingerprint: new Uint8Array(16).fill(7), blockSize: 32, hashes: HASHES }];
