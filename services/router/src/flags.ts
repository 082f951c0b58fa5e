import { defineOptions, MEMBER_OPTIONS } from "@kvasir/config";
import { WORKER_QUEUE_DEFAULTS } from "@kvasir/core";

export const ROUTER_FLAGS = defineOptions("kvasir-router", "places requests on workers", {
  id: {
    type: "string",
    env: "KVASIR_ID",
    help: "Name of this router, unique in the cluster. Default: router, host name and process id.",
  },
  queueMax: {
    type: "integer",
    env: "KVASIR_QUEUE_MAX",
    default: 1024,
    min: 0,
    help: "Requests that may wait; beyond it the tenant with most of them is refused. Larger: longer waits before a refusal; smaller: bursts are refused.",
  },
  queueTimeoutMs: {
    type: "integer",
    env: "KVASIR_QUEUE_TIMEOUT_MS",
    default: 30_000,
    min: 1,
    help: "Longest wait for room before a request is refused as overloaded.",
  },
  workerQueuePrompts: {
    type: "integer",
    env: "KVASIR_WORKER_QUEUE_PROMPTS",
    default: WORKER_QUEUE_DEFAULTS.promptCount,
    min: 0,
    help: "Prompts that a worker may have, the one that it computes included, before others wait here; 0: any number. Larger: tenants wait behind what others have there; 1: workers idle between prompts.",
  },
  workerQueueMs: {
    type: "integer",
    env: "KVASIR_WORKER_QUEUE_MS",
    default: WORKER_QUEUE_DEFAULTS.queueMaxMs,
    min: 0,
    help: "Time of prompts on a worker up to which it takes more of them all the same. Larger: tenants wait behind what others have there; smaller: workers may idle between short prompts.",
  },
  noWorkerGraceMs: {
    type: "integer",
    env: "KVASIR_NO_WORKER_GRACE_MS",
    default: 5_000,
    min: 0,
    help: "Longest wait for a capable worker while none is attached, so that a restart fails no request.",
  },
  localPrefillAfterMs: {
    type: "integer",
    env: "KVASIR_LOCAL_PREFILL_AFTER_MS",
    default: 1_000,
    min: 0,
    help: "Wait for a prefill worker before a decode worker computes the prompt. Larger: requests wait; smaller: restarts burden decode.",
  },
  workerSilenceMaxMs: {
    type: "integer",
    env: "KVASIR_WORKER_SILENCE_MAX_MS",
    default: 5_000,
    min: 1_500,
    help: "A worker without a report for this long is not placed on. Larger: requests go to the dead; smaller: a pause looks like death.",
  },
  kvBytesPerSecond: {
    type: "bytes",
    env: "KVASIR_KV_BYTES_PER_SECOND",
    default: "500MB",
    min: 1,
    help: "KV bandwidth that is assumed between two sidecars until the one that receives tells what it measured, for predictions. Larger: split placements and fetches look cheaper where nothing was measured.",
  },
  ...MEMBER_OPTIONS,
});
