import { basename, join, resolve } from "node:path";
import { issuedFiles, tlsFlags } from "./certificates.ts";

/** The repository's root. */
const ROOT = join(import.meta.dirname, "../../../..");

/** How a worker's sidecar keeps its KV. */
export interface KvOptions {
  readonly blockSize?: number;
  readonly kvDtype?: "bf16" | "f16" | "f32";
  /** Tensor-parallel shards. */
  readonly shards?: number;
}

export interface LocalClusterOptions extends KvOptions {
  /** Model directory. */
  readonly model: string;
  readonly servedModelName?: string;
  /** One leads, the others stand by; 1 when absent. */
  readonly routers?: number;
  /** How many workers of each role. */
  readonly prefill?: number;
  readonly decode?: number;
  readonly mixed?: number;
  /** Stores, which keep KV beyond the workers' memory; none when absent. */
  readonly stores?: number;
  /** Where each store has a folder of its own for its disk tier; absent: no disk tier. */
  readonly storeDirectory?: string;
  /** Of the gateway; 0 or absent: a free one. */
  readonly port?: number;
  /** A Redis that runs; absent: one of our own is started. */
  readonly redisUrl?: string;
  readonly cluster?: string;
  /** Each process's stderr goes to a file here. */
  readonly logDir: string;
  /** `auto`, `cpu` or `cuda:N`, of all sidecars. */
  readonly device?: string;
  readonly kvBytes?: string;
  /** The model's codec profile, of workers and stores: a file, `none`, or `auto` for the one beside the model, if any; absent: auto. */
  readonly codecProfile?: string;
  /** Of a GPU's memory, for each sidecar; absent: the workers' own default. */
  readonly kvMemoryPercent?: number;
  /** How workers of one role keep KV, where it is not as all others do. */
  readonly kvByRole?: Partial<Record<"prefill" | "decode" | "mixed", KvOptions>>;
  readonly weights?: "stored" | "f32" | "bf16" | "q8_0";
  /** Token budget of a step. */
  readonly stepTokens?: number;
  readonly threadsPerSidecar?: number;
  readonly leaseMs?: number;
  /**
   * Mutual TLS between all processes, Redis included if it is our own: certificates are made in this directory, which keeps its authority.
   * Absent: plain.
   */
  readonly tlsDirectory?: string;
  /** More flags, by kind of process (`router`, `gateway`, `worker`, `store`) or by its name, e.g. `prefill-0`. */
  readonly extraFlags?: Readonly<Record<string, readonly string[]>>;
  /** Where services and sidecars send their spans: OTLP over gRPC. Absent: OTEL_EXPORTER_OTLP_ENDPOINT of this process, if set. */
  readonly otlpEndpoint?: string;
  /** Environment variables of the services beyond this process's own. */
  readonly env?: Readonly<Record<string, string>>;
  /** Start a process again when it ends unasked. */
  readonly restart?: boolean;
  /** Aborted: what was started so far is ended, and `startLocalCluster` rejects. */
  readonly signal?: AbortSignal;
  readonly onEvent?: (event: ClusterEvent) => void;
}

export type ClusterEvent =
  | { readonly kind: "started"; readonly name: string; readonly ms: number }
  | { readonly kind: "lost"; readonly name: string; readonly how: string; readonly errors: string }
  | { readonly kind: "restarted"; readonly name: string };

/** Arguments of Node for each kind of service. */
export function serviceArgs(
  kind: "router" | "gateway" | "prefill" | "decode" | "mixed" | "store",
  id: string,
  options: LocalClusterOptions,
  shared: {
    readonly redisUrl: string;
    readonly cluster: string;
    readonly gatewayPort: number;
    readonly stateDir: string;
  },
): string[] {
  const { tlsDirectory } = options;
  const tls = tlsDirectory === undefined ? [] : tlsFlags(issuedFiles(tlsDirectory, id));
  const common = ["--id", id, "--redis-url", shared.redisUrl, "--cluster", shared.cluster, "--parent-watch", ...tls];
  const model = ["--model", options.model, ...flag("--served-model-name", options.servedModelName)];
  const extra = (kindOfProcess: string) => [
    ...(options.extraFlags?.[kindOfProcess] ?? []),
    ...(options.extraFlags?.[id] ?? []),
  ];
  const main = (service: string) => join(ROOT, "services", service, "src/main.ts");
  switch (kind) {
    case "router":
      return [main("router"), ...common, ...extra("router")];
    case "gateway": {
      const listen = ["--listen", `127.0.0.1:${shared.gatewayPort}`];
      return [main("gateway"), ...common, ...model, ...listen, ...extra("gateway")];
    }
    case "store": {
      const { storeDirectory } = options;
      const sizes = [
        ...flag("--served-model-name", options.servedModelName ?? basename(resolve(options.model))),
        ...flag("--directory", storeDirectory === undefined ? undefined : join(storeDirectory, id)),
        ...flag("--lease-ms", options.leaseMs),
        ...flag("--model", options.model),
        ...flag("--codec-profile", options.codecProfile),
      ];
      return [main("kv-store"), ...common, "--state-dir", shared.stateDir, ...sizes, ...extra("store")];
    }
    default: {
      const kv: KvOptions = { ...options, ...options.kvByRole?.[kind] };
      const sizes = [
        ...flag("--device", options.device),
        ...flag("--kv-bytes", options.kvBytes),
        ...flag("--kv-memory-percent", options.kvMemoryPercent),
        ...flag("--block-size", kv.blockSize),
        ...flag("--kv-dtype", kv.kvDtype),
        ...flag("--shards", kv.shards),
        ...flag("--weights", options.weights),
        ...flag("--codec-profile", options.codecProfile),
        ...flag("--step-tokens", options.stepTokens),
        ...flag("--threads", options.threadsPerSidecar),
        ...flag("--lease-ms", options.leaseMs),
      ];
      const place = ["--role", kind, "--state-dir", shared.stateDir];
      const service = kind === "prefill" ? "prefill" : "decode";
      return [main(service), ...common, ...model, ...place, ...sizes, ...extra("worker")];
    }
  }
}

function flag(name: string, value: string | number | undefined): string[] {
  return value === undefined ? [] : [name, `${value}`];
}
