import { defineOptions } from "@kvasir/config";
import { SIDECAR_OWNER_FLAGS } from "./sidecar-owner-flags.ts";
import type { Role } from "./worker.ts";

/** Flags of a worker process. `roles`: what this service can be, its default first. */
export function workerFlags(service: string, summary: string, roles: readonly [Role, ...Role[]]) {
  return defineOptions(service, summary, {
    id: {
      type: "string",
      env: "KVASIR_ID",
      help: "Name of this worker, unique in the cluster. Default: role, host name and process id.",
    },
    role: { type: "string", env: "KVASIR_ROLE", default: roles[0], choices: roles, help: "What this worker does." },
    model: { type: "string", env: "KVASIR_MODEL", required: true, help: "Model directory, or a GGUF file." },
    servedModelName: {
      type: "string",
      env: "KVASIR_SERVED_MODEL_NAME",
      help: "Name that clients use. Default: the last part of --model.",
    },
    device: {
      type: "string",
      env: "KVASIR_DEVICE",
      default: "auto",
      help: "Where the sidecar computes: cpu, cuda:N for a GPU, or auto for the first GPU that can, and the CPU where none can.",
    },
    kvBytes: {
      type: "bytes",
      env: "KVASIR_KV_BYTES",
      min: 1,
      help: "Memory of the KV pool. Larger: more sequences at once. Default: 512MiB on a CPU, on a GPU what --kv-memory-percent leaves.",
    },
    swapBytes: {
      type: "bytes",
      env: "KVASIR_SWAP_BYTES",
      min: 0,
      help: "Host memory for KV that makes room in the pool; 0: none. Default: 4GiB on a GPU, taken with the first swap, none on a CPU.",
    },
    kvMemoryPercent: {
      type: "integer",
      env: "KVASIR_KV_MEMORY_PERCENT",
      default: 90,
      min: 1,
      max: 100,
      help: "Share of a GPU's memory for weights, activations and KV together. Two workers on one GPU share it.",
    },
    deterministic: {
      type: "boolean",
      env: "KVASIR_DETERMINISTIC",
      help: "On a GPU: the same bits whatever else is in the batch, and slower. On a CPU it is always so.",
    },
    blockSize: {
      type: "string",
      env: "KVASIR_BLOCK_SIZE",
      default: "32",
      choices: ["16", "32", "64"],
      help: "Tokens per KV block. Larger: fewer, bigger transfers; smaller: less waste at the end of a sequence.",
    },
    kvDtype: {
      type: "string",
      env: "KVASIR_KV_DTYPE",
      default: "bf16",
      choices: ["bf16", "f16", "f32"],
      help: "Number format of KV. KV that comes from another format is converted, and approximate.",
    },
    shards: {
      type: "integer",
      env: "KVASIR_SHARDS",
      default: 1,
      min: 1,
      help: "Tensor-parallel shards, a divisor of the model's KV heads. Each has its part of the heads, and an address for transfers.",
    },
    codecProfile: {
      type: "string",
      env: "KVASIR_CODEC_PROFILE",
      default: "auto",
      help: "The model's codec profile for lossy KV levels, which peers must have too: a file, none, or auto for codec.kvcp beside the model.",
    },
    weights: {
      type: "string",
      env: "KVASIR_WEIGHTS",
      default: "stored",
      choices: ["stored", "f32", "bf16", "q8_0"],
      help: "How matrices are kept: as the file has them, expanded to f32, or rounded to 8 bits. Smaller: faster decode.",
    },
    threads: {
      type: "integer",
      env: "KVASIR_THREADS",
      min: 1,
      help: "Compute threads of the sidecar. Default: its own choice.",
    },
    cpus: {
      type: "string",
      env: "KVASIR_CPUS",
      help: "Processors for the sidecar's compute threads, e.g. 0,2-3. Default: any.",
    },
    stepTokens: {
      type: "integer",
      env: "KVASIR_STEP_TOKENS",
      default: 512,
      min: 1,
      help: "Most tokens in one step. Larger: prompts finish sooner, running sequences wait longer for each token.",
    },
    maxSequences: {
      type: "integer",
      env: "KVASIR_MAX_SEQUENCES",
      default: 128,
      min: 1,
      help: "Most sequences in the batch. Larger: more throughput, longer steps.",
    },
    maxWaiting: {
      type: "integer",
      env: "KVASIR_MAX_WAITING",
      default: 1_024,
      min: 1,
      help: "Most requests that may wait for blocks. Larger: bursts are ridden out; smaller: they are sent elsewhere sooner.",
    },
    prefixCaching: {
      type: "string",
      env: "KVASIR_PREFIX_CACHING",
      default: "on",
      choices: ["on", "off"],
      help: "Whether KV of prompts and answers is kept for later requests of the same tenant, as long as nobody needs its blocks.",
    },
    leaseMs: {
      type: "integer",
      env: "KVASIR_LEASE_MS",
      default: 30_000,
      min: 1,
      help: "Life of a transfer's lease. Larger: slow peers get through; smaller: what a dead peer held returns sooner.",
    },
    admissionWaitMs: {
      type: "integer",
      env: "KVASIR_ADMISSION_WAIT_MS",
      default: 2_000,
      min: 0,
      help: "How long a request may wait for blocks before it is refused as overloaded.",
    },
    pinnedPercentMax: {
      type: "integer",
      env: "KVASIR_PINNED_PERCENT_MAX",
      default: 70,
      min: 0,
      max: 100,
      help: "Share of the pool that computed prompts may hold before no more are admitted.",
    },
    stepStallMs: {
      type: "integer",
      env: "KVASIR_STEP_STALL_MS",
      default: 60_000,
      min: 100,
      help: "A step that takes longer means a hung device: the sidecar is restarted.",
    },
    drainTimeoutMs: {
      type: "integer",
      env: "KVASIR_DRAIN_TIMEOUT_MS",
      default: 20_000,
      min: 0,
      help: "Time for running requests to finish after SIGTERM or POST /drain. Larger: fewer move to other workers; smaller: the end comes sooner.",
    },
    ...SIDECAR_OWNER_FLAGS,
  });
}
