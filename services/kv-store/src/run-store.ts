import { mkdirSync } from "node:fs";
import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import { announceReady, tlsFilesFrom, waitForEnd } from "@kvasir/config";
import { KvasirError, type RendezvousNode } from "@kvasir/core";
import { type KvLayout, KvLayoutSchema, LendingService } from "@kvasir/proto";
import { createServer, transportFrom } from "@kvasir/rpc";
import { connectState, type PinRecord, type RegisteredRecord, type StoreRecord } from "@kvasir/state";
import { exposeCertificateExpiry, startAdminServer, startTelemetry } from "@kvasir/telemetry";
import { AttachClient, type AttachState, lendingService, PeerClients, spanRecordFromSidecar } from "@kvasir/worker";
import type { BlockStore } from "./block-store.ts";
import type { StoreValues } from "./flags.ts";
import { keptTextsFrom } from "./kept-texts.ts";
import { registerMetrics } from "./metrics.ts";
import { StoreSupervisor } from "./store-supervisor.ts";
import { type FollowedWorker, WorkerFollowers } from "./worker-followers.ts";

/** For the last answers to reach who asked. */
const CLOSE_GRACE_MS = 500;
const DRAIN_LOOK_MS = 20;

/** Serves until the process is asked to end. */
export async function runStore(values: StoreValues): Promise<void> {
  const storeId = values.id ?? `store-${hostname()}-${process.pid}`;
  const end = waitForEnd(values.parentWatch);
  const telemetry = startTelemetry({ service: "kv-store", instanceId: storeId });
  const { logger: log } = telemetry;
  const transport = transportFrom(tlsFilesFrom(values), { role: "store", id: storeId }, log);
  exposeCertificateExpiry(telemetry.registry, transport.certificates);
  const state = await connectState(values.redisUrl, values.cluster, { log, tls: tlsFilesFrom(values) });
  if (values.directory !== undefined) mkdirSync(values.directory, { recursive: true });

  const { promise: asked, resolve: askToDrain } = Promise.withResolvers<number>();
  const peers = new PeerClients(LendingService, transport);
  let isDraining = false;
  let members: readonly StoreRecord[] = [];
  let pins: readonly PinRecord[] = [];
  const keep = (store: BlockStore) => store.keep(keptTextsFrom(pins, values.servedModelName, store.facts.layout));
  const meter = registerMetrics(
    telemetry.registry,
    () => supervisor.current,
    () => supervisor.restartCount,
    () => followers.followedCount,
  );
  const supervisor: StoreSupervisor = new StoreSupervisor({
    command: { ...values, binary: values.sidecarBinary, storeId, tls: tlsFilesFrom(values) },
    nextEpoch: () => state.nextEpoch(),
    log,
    store: {
      settings: {
        storeId,
        admission: values.admission as "all" | "second-hit" | "cost",
        pullBytesPerSecond: values.pullBytesPerSecond,
        usesPerReplica: values.usesPerReplica,
        tenantShareMax: values.tenantPercentMax / 100,
        ttlSeconds: values.ttlSeconds,
        stagingBlockCount: values.stagingBlocks,
        keptShareMax: values.keptPercentMax / 100,
        leaseMs: values.leaseMs,
      },
      workers: peers,
      meter,
      tracer: telemetry.tracer,
      log,
      nodes: () => nodesOf(members, { ...record(), storeId }),
      changed: () => attach.loadChanged(),
    },
    changed: (current) => {
      attach.incarnationChanged();
      if (current === undefined) return;
      keep(current);
      void registration.update(record());
    },
  });

  const server = createServer(transport);
  const lend = lendingService(
    (request, metadata) => lender(supervisor.current, isDraining).lend(request, metadata),
    values.leaseMs,
  );
  server.add(LendingService, lend);
  const address = await server.listen(values.listen);
  const admin = await startAdminServer({
    listen: values.adminListen,
    telemetry,
    isReady() {
      if (isDraining) return { ready: false, reason: "the store is draining" };
      if (supervisor.current) return { ready: true };
      const reason = supervisor.isStarted ? "the sidecar is not running" : "no worker has told its layout yet";
      return { ready: false, reason };
    },
    drain: {
      state: () => ({ state: isDraining ? "draining" : "serving", running: supervisor.current?.loanCount ?? 0 }),
      start: (deadlineMs = values.drainTimeoutMs) => askToDrain(deadlineMs),
    },
    extraSpans: async (traceId) => {
      const spans = (await supervisor.current?.facts.kernel.spans(traceId)) ?? [];
      return spans.map((span) => spanRecordFromSidecar(span, `${storeId}-sidecar`));
    },
  });
  const reachable = advertised(address, values.advertiseHost);
  const adminAddress = advertised(admin.address, values.advertiseHost);
  const record = (): RegisteredRecord<"store"> => ({
    storeId,
    address: reachable,
    adminAddress,
    model: values.servedModelName,
    fingerprint: fingerprintOf(supervisor.current?.facts.layout),
    capacityBytes: values.memoryBytes + (values.directory === undefined ? 0 : values.diskBytes),
  });
  const facts = { storeId, address: reachable, adminAddress, model: values.servedModelName };
  const attach = new AttachClient(
    () => supervisor.current && attachState(supervisor.current, facts, () => isDraining),
    log,
    transport,
  );
  const registration = await state.register("store", storeId, record());
  const followers: WorkerFollowers = new WorkerFollowers(transport, log, {
    followed: (worker) => learnLayout(worker, supervisor),
    used: (worker, used) => supervisor.current?.used(worker, used),
    lost: (workerId) => supervisor.current?.workerLost(workerId),
  });
  const knowsMembers = Promise.withResolvers<void>();
  const unwatch = [
    state.watch("router", (routers) => attach.setRouters(routers)),
    state.pins.watch((latest) => {
      pins = latest;
      if (supervisor.current) keep(supervisor.current);
    }),
    state.watch("store", (stores) => {
      members = stores;
      knowsMembers.resolve();
    }),
    // Only then: who thinks that it is alone takes everything.
    state.watch("worker", (workers) => {
      const serving = workers.filter(({ model }) => model === values.servedModelName);
      void knowsMembers.promise.then(() => followers.setWorkers(serving));
    }),
  ];
  announceReady({ service: "kv-store", id: storeId, grpc: address, admin: admin.address });
  log.info({ model: values.servedModelName, address }, "ready");

  const { reason, deadlineMs } = await Promise.race([
    end.then((reason) => ({ reason, deadlineMs: reason === "parent gone" ? 0 : values.drainTimeoutMs })),
    asked.then((deadlineMs) => ({ reason: "admin call", deadlineMs })),
  ]);
  isDraining = true;
  if (supervisor.current) supervisor.current.isDraining = true;
  attach.loadChanged();
  log.info({ reason, deadlineMs, loans: supervisor.current?.loanCount ?? 0 }, "draining");
  const until = performance.now() + deadlineMs;
  while ((supervisor.current?.loanCount ?? 0) > 0 && performance.now() < until) await sleep(DRAIN_LOOK_MS);
  log.info({ reason, left: supervisor.current?.loanCount ?? 0 }, "stopping");
  for (const stop of unwatch) stop();
  followers.close();
  await attach.close();
  await registration.close();
  await supervisor.stop();
  await server.close(CLOSE_GRACE_MS);
  peers.close();
  await admin.close();
  await state.close();
  await telemetry.close();
  process.exit(0);
}

/** The first layout of a worker that computes prompts is the store's; others' blocks are not for it. */
function learnLayout({ role, hello }: FollowedWorker, supervisor: StoreSupervisor): void {
  if (supervisor.isStarted || role === "decode" || hello.layout === undefined) return;
  // Whole blocks, however many shards the workers have.
  supervisor.start(create(KvLayoutSchema, { ...hello.layout, shardCount: 1 }));
}

function lender(current: BlockStore | undefined, isDraining: boolean): BlockStore {
  if (current !== undefined && !isDraining) return current;
  const message = isDraining ? "the store is draining" : "the store's sidecar is not running";
  throw new KvasirError({ reason: "unavailable", message: `${message}; compute the blocks` });
}

/** Those that share the blocks of one layout; oneself also while Redis is away. */
function nodesOf(members: readonly StoreRecord[], own: StoreRecord): readonly RendezvousNode[] {
  // Who has not told a layout yet will have the same one, most likely.
  const fits = (fingerprint: string) => ["", own.fingerprint].includes(fingerprint) || own.fingerprint === "";
  const alike = members.filter(({ model, fingerprint }) => model === own.model && fits(fingerprint));
  const all = new Map([...alike, own].map((member) => [member.storeId, member]));
  return [...all.values()].map(({ storeId, capacityBytes }) => ({ id: storeId, weight: capacityBytes }));
}

function attachState(
  store: BlockStore,
  facts: Pick<StoreRecord, "storeId" | "address" | "adminAddress" | "model">,
  isDraining: () => boolean,
): AttachState {
  const { layout } = store.facts;
  const { memoryBytes, diskBytes } = store.limits;
  const { transferAddress } = store.facts.description;
  const value = { ...facts, transferAddress, layout, memoryBytes: BigInt(memoryBytes), diskBytes: BigInt(diskBytes) };
  return {
    epoch: store.epoch,
    hello: { case: "storeHello", value },
    load: () => ({ case: "storeLoad", value: { draining: isDraining() } }),
    caches: store.caches,
  };
}

function fingerprintOf(layout: KvLayout | undefined): string {
  return layout === undefined ? "" : Buffer.from(layout.exactFingerprint).toString("hex");
}

/** An address that others can use: the port that was bound, on the advertised host. */
function advertised(bound: string, host: string | undefined): string {
  return host === undefined ? bound : `${host}:${bound.slice(bound.lastIndexOf(":") + 1)}`;
}
