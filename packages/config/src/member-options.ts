import type { OptionSpecs } from "./option-spec.ts";
import { TLS_OPTIONS } from "./tls-options.ts";

/** Options of every process that offers gRPC to the others of its cluster. */
export const MEMBER_OPTIONS = {
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
  advertiseHost: {
    type: "string",
    env: "KVASIR_ADVERTISE_HOST",
    help: "Host that others reach this one by. Default: the hosts of the listen addresses.",
  },
  ...TLS_OPTIONS,
  parentWatch: { type: "boolean", env: "KVASIR_PARENT_WATCH", help: "End when stdin reaches its end." },
} as const satisfies OptionSpecs;
