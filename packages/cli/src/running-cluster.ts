import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { State } from "@kvasir/state";

/** What `npm run up` wrote down of the cluster it runs. */
export interface RunningCluster {
  readonly redisUrl?: string;
  readonly cluster?: string;
}

/** Undefined when `npm run up` runs none. */
export async function runningCluster(cache: string): Promise<RunningCluster | undefined> {
  try {
    const value: unknown = JSON.parse(await readFile(join(cache, "run/cluster.json"), "utf8"));
    if (typeof value !== "object" || value === null) return undefined;
    const { redisUrl, cluster } = value as Readonly<Record<string, unknown>>;
    return {
      ...(typeof redisUrl === "string" ? { redisUrl } : {}),
      ...(typeof cluster === "string" ? { cluster } : {}),
    };
  } catch {
    return undefined;
  }
}

/** One registered service. */
export interface Member {
  readonly name: string;
  /** `gateway`, `router`, or a worker's role. */
  readonly kind: string;
  /** host:port of its HTTP endpoint. */
  readonly adminAddress: string;
}

export async function membersOf(state: Pick<State, "list">): Promise<readonly Member[]> {
  const [gateways, routers, workers] = await Promise.all([
    state.list("gateway"),
    state.list("router"),
    state.list("worker"),
  ]);
  return [
    ...gateways.map(({ gatewayId, adminAddress }) => ({ name: gatewayId, kind: "gateway", adminAddress })),
    ...routers.map(({ routerId, adminAddress }) => ({ name: routerId, kind: "router", adminAddress })),
    ...workers.map(({ workerId, role, adminAddress }) => ({ name: workerId, kind: role, adminAddress })),
  ];
}
