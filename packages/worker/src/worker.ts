import { setTimeout as sleep } from "node:timers/promises";
import { CacheFeedService, DecodeService, LendingService, PrefillService } from "@kvasir/proto";
import { createServer, PLAIN, type RpcServer, type Transport } from "@kvasir/rpc";
import type { Tracer } from "@opentelemetry/api";
import { decodeService } from "./decode/decode-service.ts";
import { LeaseRenewals } from "./decode/lease-renewals.ts";
import { PrefillPeers } from "./decode/peers.ts";
import type { StepTimes } from "./engine/step-meter.ts";
import type { EngineLimits, Incarnation } from "./incarnation.ts";
import { cacheFeedService } from "./lending/cache-feed-service.ts";
import { lendingService } from "./lending/lending-service.ts";
import { lendFromPool } from "./lending/worker-lender.ts";
import type { Log } from "./log.ts";
import type { LocalPrefillCause } from "./metrics.ts";
import { PeerClients } from "./peer-clients.ts";
import { prefillService } from "./prefill/prefill-service.ts";
import type { RequestMeter } from "./request-meter.ts";
import type { LaunchSidecar } from "./sidecar/sidecar-process.ts";
import { Supervisor } from "./sidecar/supervisor.ts";

export type Role = "prefill" | "decode" | "mixed";

export interface WorkerOptions {
  readonly workerId: string;
  readonly role: Role;
  /** Of the gRPC connections with others; absent: plain. */
  readonly transport?: Transport;
  readonly launch: LaunchSidecar;
  readonly nextEpoch: () => Promise<number>;
  readonly limits: EngineLimits;
  /** How long transfers may keep blocks. Larger: slow peers get through; smaller: what a dead peer held returns sooner. */
  readonly leaseMs: number;
  /** How long a request may wait for blocks before it is refused as overloaded. */
  readonly admissionWaitMs: number;
  readonly stepStallMs: number;
  readonly tracer: Tracer;
  readonly log: Log;
  readonly onStep: (times: StepTimes) => void;
  readonly onLocalPrefill: (cause: LocalPrefillCause) => void;
  readonly requests: RequestMeter;
}

/** One worker: a supervised sidecar and the gRPC services of its role. Knows nothing of Redis, routers or flags. */
export class Worker {
  readonly workerId: string;
  readonly role: Role;
  readonly supervisor: Supervisor;
  readonly #options: WorkerOptions;
  readonly #server: RpcServer;
  readonly #peers: PrefillPeers;
  readonly #lenders: PeerClients<typeof LendingService>;
  readonly #loadWatchers = new Set<() => void>();
  #generationCount = 0;
  #runCount = 0;
  #draining = false;
  #leaderToken = 0n;

  constructor(options: WorkerOptions) {
    this.#options = options;
    this.workerId = options.workerId;
    this.role = options.role;
    const { launch, nextEpoch, limits, stepStallMs, log, onStep, transport = PLAIN } = options;
    const onLoad = () => {
      for (const watcher of this.#loadWatchers) watcher();
    };
    this.supervisor = new Supervisor({ launch, nextEpoch, limits, stepStallMs, log, onStep, onLoad });
    this.#server = createServer(transport);
    this.#peers = new PrefillPeers(transport);
    this.#lenders = new PeerClients(LendingService, transport);
    this.#addServices();
  }

  /** The incarnation that takes new work: none while the sidecar starts, and none when the worker is about to stop. */
  get current(): Incarnation | undefined {
    return this.#draining ? undefined : this.supervisor.current;
  }

  /** A router leads with this fencing token; older ones place no more. */
  leaderSeen(token: bigint): void {
    if (token > this.#leaderToken) this.#leaderToken = token;
  }

  /** Calls back whenever the load may have changed. */
  onLoad(watcher: () => void): void {
    this.#loadWatchers.add(watcher);
  }

  /** Starts sidecar and services; answers with the address bound. */
  async start(listen: string): Promise<string> {
    await this.supervisor.start();
    return this.#server.listen(listen);
  }

  /**
   * Takes nothing new from now on, finishes what it has, and serves its KV to those who hold leases on it. Resolves when nothing is left, or
   * after `deadlineMs` with what is.
   */
  async drain(deadlineMs: number): Promise<void> {
    this.#draining = true;
    for (const watcher of this.#loadWatchers) watcher();
    const until = performance.now() + deadlineMs;
    while (this.workCount > 0 && performance.now() < until) await sleep(20);
  }

  get isDraining(): boolean {
    return this.#draining;
  }

  /** Generations and hand-overs that run. */
  get workCount(): number {
    return this.#generationCount + this.#runCount;
  }

  /** Fails what still runs, in a way that lets it go on at another worker, and ends the sidecar. */
  async stop(): Promise<void> {
    this.#draining = true;
    await this.supervisor.stop();
    await this.#server.close(500);
    this.#peers.close();
    this.#lenders.close();
  }

  #addServices(): void {
    const { workerId, role, tracer, leaseMs, admissionWaitMs, requests } = this.#options;
    const shared = { workerId, tracer, leaseMs, admissionWaitMs, requests, current: () => this.current };
    // Also while it drains: soon nobody else has what is cached here.
    const lends = () => ({ current: this.supervisor.current, workerId, leaseMs });
    this.#server.add(
      LendingService,
      lendingService((request, metadata) => lendFromPool(request, metadata, lends()), leaseMs),
    );
    this.#server.add(
      CacheFeedService,
      cacheFeedService(workerId, () => this.supervisor.current),
    );
    if (role !== "prefill") {
      const onGeneration = (change: number) => {
        this.#generationCount += change;
      };
      const { onLocalPrefill } = this.#options;
      const peers = this.#peers;
      const renewals = new LeaseRenewals(peers);
      this.#server.add(
        DecodeService,
        decodeService({
          ...shared,
          leaderToken: () => this.#leaderToken,
          peers,
          lenders: this.#lenders,
          renewals,
          onGeneration,
          onLocalPrefill,
        }),
      );
    }
    if (role !== "decode") {
      const onRun = (change: number) => {
        this.#runCount += change;
      };
      this.#server.add(PrefillService, prefillService({ ...shared, lenders: this.#lenders, onRun }));
    }
  }
}
