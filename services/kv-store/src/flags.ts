import { defineOptions } from "@kvasir/config";
import { ADMISSION_POLICIES } from "@kvasir/core";
import { SIDECAR_OWNER_FLAGS } from "@kvasir/worker";

export const STORE_FLAGS = defineOptions("kvasir-store", "keeps KV beyond the workers' memory, and lends it to them", {
  id: {
    type: "string",
    env: "KVASIR_ID",
    help: "Name of this store, unique in the cluster and the same after a restart. Default: store, host name and process id.",
  },
  servedModelName: {
    type: "string",
    env: "KVASIR_SERVED_MODEL_NAME",
    required: true,
    help: "Model whose KV it keeps, by the name that clients use. The layout is learnt from its workers.",
  },
  memoryBytes: {
    type: "bytes",
    env: "KVASIR_MEMORY_BYTES",
    default: "256MiB",
    min: 1,
    help: "Memory for blocks, taken as it is used.",
  },
  directory: {
    type: "string",
    env: "KVASIR_DIRECTORY",
    help: "Directory of the disk tier, this store's own. What is in it is there again after a restart. Default: no disk tier.",
  },
  diskBytes: { type: "bytes", env: "KVASIR_DISK_BYTES", default: "1GiB", min: 1, help: "Size of the disk tier." },
  segmentBytes: {
    type: "bytes",
    env: "KVASIR_SEGMENT_BYTES",
    default: "64MiB",
    min: 1,
    help: "Size of one file of the disk tier. Larger: fewer files; smaller: less has to be free for compaction.",
  },
  stagingBlocks: {
    type: "integer",
    env: "KVASIR_STAGING_BLOCKS",
    default: 256,
    min: 4,
    help: "Blocks that may be on their way in or out, in memory of their own. Larger: longer prompts are lent whole.",
  },
  tenantPercentMax: {
    type: "integer",
    env: "KVASIR_TENANT_PERCENT_MAX",
    default: 100,
    min: 1,
    max: 100,
    help: "Share of both tiers that one tenant's blocks may take; beyond it a tenant loses its own blocks.",
  },
  keptPercentMax: {
    type: "integer",
    env: "KVASIR_KEPT_PERCENT_MAX",
    default: 50,
    min: 0,
    max: 100,
    help: "Share of both tiers that pinned prompts may keep. Larger: more of them stay; smaller: more room for what is used of late.",
  },
  ttlSeconds: {
    type: "integer",
    env: "KVASIR_TTL_SECONDS",
    default: 0,
    min: 0,
    help: "Life of a block from its arrival; 0: until others need its place.",
  },
  admission: {
    type: "string",
    env: "KVASIR_ADMISSION",
    default: "cost",
    choices: ADMISSION_POLICIES,
    help: "What is stored: all, what a second request uses (second-hit), or also what is slow enough to compute (cost).",
  },
  pullBytesPerSecond: {
    type: "bytes",
    env: "KVASIR_PULL_BYTES_PER_SECOND",
    default: "1GB",
    min: 1,
    help: "What pulls from workers may take of the network. Larger: blocks are stored sooner; smaller: hand-overs are disturbed less.",
  },
  usesPerReplica: {
    type: "integer",
    env: "KVASIR_USES_PER_REPLICA",
    default: 32,
    min: 1,
    help: "Uses of a text's beginning for each further store that keeps it. Larger: hot texts queue at one; smaller: more copies.",
  },
  leaseMs: {
    type: "integer",
    env: "KVASIR_LEASE_MS",
    default: 30_000,
    min: 1,
    help: "Longest life of a loan. Larger: slow peers get through; smaller: what a dead peer held returns sooner.",
  },
  drainTimeoutMs: {
    type: "integer",
    env: "KVASIR_DRAIN_TIMEOUT_MS",
    default: 20_000,
    min: 0,
    help: "Time for running loans to end after SIGTERM or POST /drain.",
  },
  codecProfile: {
    type: "string",
    env: "KVASIR_CODEC_PROFILE",
    default: "auto",
    help: "The model's codec profile, for lending at lossy levels to requests that allow it (blocks are kept exact): the same file as its workers', none, or auto for codec.kvcp beside --model.",
  },
  model: {
    type: "string",
    env: "KVASIR_MODEL",
    help: "Directory or GGUF file of the model, where it is on this machine; read for --codec-profile auto only.",
  },
  ...SIDECAR_OWNER_FLAGS,
});

export type StoreValues = Extract<ReturnType<typeof STORE_FLAGS.parse>, { readonly kind: "values" }>["values"];
