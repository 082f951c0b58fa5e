import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { State } from "@kvasir/state";
import type { IssuedFiles } from "./local-cluster/certificates.ts";

/** What `npm run up` wrote down of the cluster it runs. */
export interface RunningCluster {
  readonly redisUrl?: string;
  readonly cluster?: string;
  /** The operator's certificates, when the cluster speaks TLS. */
  readonly tls?: IssuedFiles;
}

function isFiles(value: unknown): value is IssuedFiles {
  const files = (value ?? {}) as Readonly<Record<string, unknown>>;
  return ["ca", "cert", "key"].every((name) => typeof files[name] === "string");
}

/** Undefined when `npm run up` runs none. */
export async function runningCluster(cache: string): Promise<RunningCluster | undefined> {
  try {
    const value: unknown = JSON.parse(await readFile(join(cache, "run/cluster.json"), "utf8"));
    if (typeof value !== "object" || value === null) return undefined;
    const { redisUrl, cluster, tls } = value as Readonly<Record<string, unknown>>;
    return {
      ...(typeof redisUrl === "string" ? { redisUrl } : {}),
      ...(typeof cluster === "string" ? { cluster } : {}),
      ...(isFiles(tls) ? { tls } : {}),
    };
  } catch {
    return undefined;
  }
}

/** One registered service. */
export interface Member {
  readonly name: string;
  /** `gateway`, `router`, `store`, or a worker's role. */
  readonly kind: string;
  /** host:port of its HTTP endpoint. */
  readonly adminAddress: string;
}

export async function membersOf(state: Pick<State, "list">): Promise<readonly Member[]> {
  const [gateways, routers, workers, stores] = await Promise.all([
    state.list("gateway"),
    state.list("router"),
    state.list("worker"),
    state.list("store"),
  ]);
  return [
    ...gateways.map(({ gatewayId, adminAddress }) => ({ name: gatewayId, kind: "gateway", adminAddress })),
    ...routers.map(({ routerId, adminAddress }) => ({ name: routerId, kind: "router", adminAddress })),
    ...workers.map(({ workerId, role, adminAddress }) => ({ name: workerId, kind: role, adminAddress })),
    ...stores.map(({ storeId, adminAddress }) => ({ name: storeId, kind: "store", adminAddress })),
  ];
}
