import {
  type PlacementPolicy,
  type ReportedLoad,
  WORKER_QUEUE_DEFAULTS,
  type WorkerQueueOptions,
  type WorkerRole,
} from "@kvasir/core";
import type { DeviceProfile } from "./device-profile.ts";
import type { LinkOptions } from "./link.ts";
import type { StoreSpec } from "./simulated-store.ts";

/** A worker that is not like the others. */
export interface WorkerQuirk {
  readonly workerIndex: number;
  /** How much slower its device is. Default 1. */
  readonly slowdown?: number;
  /** What it makes of its load before it tells. */
  readonly distort?: (load: ReportedLoad) => ReportedLoad;
  /** Share of what it tells of its cache that never arrives. Default 0. */
  readonly cacheEventLoss?: number;
  /** Its way out, where that is not like the others'. */
  readonly link?: LinkOptions;
  /** It never says that blocks left its cache: a holder of what it has not. */
  readonly hidesRemovals?: boolean;
}

/** The leading router dies; the next one leads after so long. */
export interface RouterFault {
  readonly atMs: number;
  readonly takeOverMs: number;
}

/** Something that happens to a worker. */
export interface Fault {
  readonly atMs: number;
  readonly workerIndex: number;
  /** It dies, and comes back under a new epoch after so long. */
  readonly restartAfterMs: number;
}

/** Everything that decides a simulation beside its trace. */
export interface SimulationSpec {
  readonly seed: number;
  readonly profile: DeviceProfile;
  /** Devices of workers that have others; of the same model. */
  readonly profileByRole?: Partial<Record<WorkerRole, DeviceProfile>>;
  readonly roles: readonly WorkerRole[];
  readonly blockSize: number;
  readonly tokenBudget: number;
  readonly sequenceCountMax: number;
  /** Steps that a worker sends before an answer. Default 2, as the real one. */
  readonly stepsInFlightMax?: number;
  /** The worker process between a step's answer and the next step. */
  readonly stepOverheadMs: number;
  readonly link: LinkOptions;
  /** Whether workers measure the links over which KV comes to them, and tell. Default: they do not, and the router believes `link` of all. */
  readonly measuresLinks?: boolean;
  /** One way between any two processes. */
  readonly rpcMs: number;
  /** Shortest time between two reports of a worker that is busy. */
  readonly reportMs: number;
  readonly objectives: { readonly ttftMs: number; readonly tbtMs: number } | undefined;
  /** The router's own when absent. */
  readonly policy?: PlacementPolicy | undefined;
  readonly queueMax: number;
  /** What may wait on workers before requests wait at the router; absent: all that has room. */
  readonly workerQueue?: WorkerQueueOptions | undefined;
  /** Where cached blocks outlive their worker's cache. Default none. */
  readonly stores?: readonly StoreSpec[];
  readonly quirks?: readonly WorkerQuirk[];
  readonly faults?: readonly Fault[];
  /** Each needs a router that stands by, and there is one for each. */
  readonly routerFaults?: readonly RouterFault[];
}

export const SIMULATION_DEFAULTS = {
  seed: 1,
  blockSize: 64,
  tokenBudget: 512,
  sequenceCountMax: 256,
  stepOverheadMs: 0.1,
  link: { bytesPerSecond: 12.5e9, latencyMs: 0.1 },
  rpcMs: 0.5,
  reportMs: 100,
  objectives: undefined,
  queueMax: 100_000,
} as const;

/** With the queue that routers keep unless told otherwise: for plans, and beside a live cluster. */
export const PRODUCTION_DEFAULTS = { ...SIMULATION_DEFAULTS, workerQueue: WORKER_QUEUE_DEFAULTS } as const;

/** So many workers of each role, in one list. */
export function rolesOf(counts: Partial<Record<WorkerRole, number>>): WorkerRole[] {
  return (["mixed", "prefill", "decode"] as const).flatMap((role) =>
    Array.from({ length: counts[role] ?? 0 }, (): WorkerRole => role),
  );
}
