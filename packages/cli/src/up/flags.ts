import { defineOptions } from "@kvasir/config";

export const UP_FLAGS = defineOptions("npm run up --", "a whole cluster on this machine, and one question answered", {
  model: {
    type: "string",
    env: "KVASIR_UP_MODEL",
    default: "smollm2",
    help: "smollm2, tiny, a model directory, or a GGUF file (imported once).",
  },
  routers: {
    type: "integer",
    env: "KVASIR_UP_ROUTERS",
    default: 1,
    min: 1,
    max: 9,
    help: "Routers: one leads, the others stand by.",
  },
  prefill: { type: "integer", env: "KVASIR_UP_PREFILL", default: 1, min: 0, max: 64, help: "Prefill workers." },
  decode: { type: "integer", env: "KVASIR_UP_DECODE", default: 1, min: 0, max: 64, help: "Decode workers." },
  mixed: { type: "integer", env: "KVASIR_UP_MIXED", default: 0, min: 0, max: 64, help: "Workers that do both." },
  stores: {
    type: "integer",
    env: "KVASIR_UP_STORES",
    default: 0,
    min: 0,
    max: 64,
    help: "Stores, which keep KV beyond the workers' memory, in theirs and on disk; what is on disk is there again with the next start.",
  },
  port: {
    type: "integer",
    env: "KVASIR_UP_PORT",
    default: 8000,
    min: 0,
    max: 65_535,
    help: "Where the gateway listens, on 127.0.0.1; 0 takes a free one.",
  },
  threads: {
    type: "integer",
    env: "KVASIR_UP_THREADS",
    min: 1,
    help: "Compute threads of each sidecar. Default: its own choice.",
  },
  weights: {
    type: "string",
    env: "KVASIR_UP_WEIGHTS",
    default: "stored",
    choices: ["stored", "f32", "bf16", "q8_0"],
    help: "How matrices are kept: as the file has them, expanded to f32, or rounded to 8 bits.",
  },
  kvBytes: {
    type: "bytes",
    env: "KVASIR_UP_KV_BYTES",
    default: "1GiB",
    min: 1,
    help: "KV pool of each worker; memory is taken as it is used.",
  },
  blockSize: {
    type: "string",
    env: "KVASIR_UP_BLOCK_SIZE",
    default: "32",
    choices: ["16", "32", "64"],
    help: "Tokens per KV block.",
  },
  kvDtype: {
    type: "string",
    env: "KVASIR_UP_KV_DTYPE",
    default: "bf16",
    choices: ["bf16", "f16", "f32"],
    help: "Number format of KV.",
  },
  shards: {
    type: "integer",
    env: "KVASIR_UP_SHARDS",
    default: 1,
    min: 1,
    help: "Tensor-parallel shards of each sidecar, a divisor of the model's KV heads (smollm2 has 3, tiny 2).",
  },
  prefillBlockSize: {
    type: "string",
    env: "KVASIR_UP_PREFILL_BLOCK_SIZE",
    choices: ["16", "32", "64"],
    help: "The same of prefill workers, where it is another one.",
  },
  prefillKvDtype: {
    type: "string",
    env: "KVASIR_UP_PREFILL_KV_DTYPE",
    choices: ["bf16", "f16", "f32"],
    help: "The same of prefill workers, where it is another one. KV is converted on its way, and approximate.",
  },
  prefillShards: {
    type: "integer",
    env: "KVASIR_UP_PREFILL_SHARDS",
    min: 1,
    help: "The same of prefill workers, where they have another number.",
  },
  tls: {
    type: "boolean",
    env: "KVASIR_UP_TLS",
    help: "Mutual TLS between all processes, KV included, with certificates made for the purpose.",
  },
  once: { type: "boolean", env: "KVASIR_UP_ONCE", help: "End after the question instead of waiting for Ctrl-C." },
});

export type UpValues = Extract<ReturnType<typeof UP_FLAGS.parse>, { readonly kind: "values" }>["values"];
