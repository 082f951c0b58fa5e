import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { TLS_OPTIONS } from "@kvasir/config";

const BUILT_SIDECAR = fileURLToPath(
  new URL("../../../services/sidecar/target/release/kvasir-sidecar", import.meta.url),
);

/** Flags of every process that has a sidecar. */
export const SIDECAR_OWNER_FLAGS = {
  redisUrl: {
    type: "string",
    env: "KVASIR_REDIS_URL",
    default: "redis://127.0.0.1:6379",
    help: "Redis with membership and epochs.",
  },
  cluster: { type: "string", env: "KVASIR_CLUSTER", default: "local", help: "Cluster to join." },
  listen: { type: "address", env: "KVASIR_LISTEN", default: "127.0.0.1:0", help: "gRPC address." },
  adminListen: {
    type: "address",
    env: "KVASIR_ADMIN_LISTEN",
    default: "127.0.0.1:0",
    help: "HTTP address of probes, metrics and traces.",
  },
  transferListen: {
    type: "address",
    env: "KVASIR_TRANSFER_LISTEN",
    default: "127.0.0.1:0",
    help: "Address where the sidecar serves KV.",
  },
  advertiseHost: {
    type: "string",
    env: "KVASIR_ADVERTISE_HOST",
    help: "Host that others reach this one by. Default: the hosts of the listen addresses.",
  },
  sidecarBinary: {
    type: "string",
    env: "KVASIR_SIDECAR_BINARY",
    default: BUILT_SIDECAR,
    help: "The kvasir-sidecar program.",
  },
  stateDir: {
    type: "string",
    env: "KVASIR_STATE_DIR",
    default: join(tmpdir(), "kvasir"),
    help: "Directory for the socket between this process and its sidecar.",
  },
  ...TLS_OPTIONS,
  parentWatch: { type: "boolean", env: "KVASIR_PARENT_WATCH", help: "End when stdin reaches its end." },
} as const;
