import { join } from "node:path";
import { tlsFilesFrom } from "@kvasir/config";
import { connectState, type State } from "@kvasir/state";
import { runningCluster } from "./running-cluster.ts";

const CACHE = process.env.KVASIR_CACHE || join(import.meta.dirname, "../../../.cache");
const CONNECT_MAX_MS = 3_000;
export const LOCAL = { redisUrl: "redis://127.0.0.1:6379", cluster: "local" };

/** Flags of the commands that ask a cluster's services. */
export const CLUSTER_OPTIONS = {
  redisUrl: {
    type: "string",
    env: "KVASIR_REDIS_URL",
    help: `Redis with membership. Default: that of the running "npm run up", else ${LOCAL.redisUrl}.`,
  },
  cluster: {
    type: "string",
    env: "KVASIR_CLUSTER",
    help: `Cluster to ask. Default: that of the running "npm run up", else ${LOCAL.cluster}.`,
  },
} as const;

export type ClusterValues = Parameters<typeof tlsFilesFrom>[0] & {
  readonly redisUrl?: string | undefined;
  readonly cluster?: string | undefined;
};

export interface ConnectedCluster {
  readonly state: State;
  readonly redisUrl: string;
  readonly cluster: string;
  /** Absent: plain. */
  readonly tls: { readonly ca: string; readonly cert: string; readonly key: string } | undefined;
}

/** Membership of the cluster that flags name, or else of the one that runs here. Close its state in the end. */
export async function connectCluster(values: ClusterValues): Promise<ConnectedCluster> {
  const running = await runningCluster(CACHE);
  const redisUrl = values.redisUrl ?? running?.redisUrl ?? LOCAL.redisUrl;
  const cluster = values.cluster ?? running?.cluster ?? LOCAL.cluster;
  const given = tlsFilesFrom(values);
  const files = given.ca === undefined ? (running?.tls ?? given) : given;
  const state = await connectState(redisUrl, cluster, { connectMaxMs: CONNECT_MAX_MS, tls: files });
  const { ca, cert, key } = files;
  const tls = ca === undefined || cert === undefined || key === undefined ? undefined : { ca, cert, key };
  return { state, redisUrl, cluster, tls };
}
