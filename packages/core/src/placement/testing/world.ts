import { type Instant, nanosFromMs } from "../../time.ts";
import type { AttachedWorker } from "../cluster-view.ts";
import { PREDICTION_DEFAULTS } from "../predict.ts";
import { NOTHING_RESERVED } from "../reservations.ts";
import type { RouterOptions } from "../router-state.ts";
import type { ReportedLoad, RequestShape, WorkerFacts } from "../worker-facts.ts";

/** Small worlds for the tests of this folder: eleven blocks of 32 tokens, a context of 320, 1 KB of KV per token. */
export function facts(workerId: string, extra: Partial<WorkerFacts> = {}): WorkerFacts {
  const role = workerId.startsWith("p") ? "prefill" : workerId.startsWith("m") ? "mixed" : "decode";
  return {
    workerId,
    role,
    address: `${workerId}:1`,
    model: "tiny",
    fingerprint: "aa".repeat(16),
    exactFingerprint: "aa".repeat(16),
    kvModel: {
      modelRevision: "aa",
      layerCount: 4,
      kvHeadCount: 2,
      headSize: 16,
      rope: "base=10000,dim=16,scaling=none",
    },
    kvDtype: "bf16",
    blockSize: 32,
    kvBytesPerToken: 1_000,
    blockCount: 11,
    contextLength: 320,
    ...extra,
  };
}

export function load(extra: Partial<ReportedLoad> = {}): ReportedLoad {
  return {
    freeBlockCount: 11,
    runningCount: 0,
    waitingCount: 0,
    queuedPromptTokenCount: 0,
    contextTokenCount: 0,
    prefillTokensPerSecond: 1_000,
    decodeStepMs: 10,
    isDraining: false,
    ...extra,
  };
}

export function attached(
  workerId: string,
  extraLoad: Partial<ReportedLoad> = {},
  extraFacts: Partial<WorkerFacts> = {},
): AttachedWorker {
  return {
    facts: facts(workerId, extraFacts),
    epoch: 1,
    incarnation: `${workerId}@1`,
    streamId: 1,
    sequence: 2,
    load: load(extraLoad),
    reservedAtReport: NOTHING_RESERVED,
    reportedAt: at(0),
    isLost: false,
  };
}

export function request(promptTokenCount: number, maxTokens: number, model = "tiny"): RequestShape {
  return { model, promptTokenCount, maxTokens };
}

export function at(ms: number): Instant {
  return nanosFromMs(ms) as number as Instant;
}

export function routerOptions(extra: Partial<RouterOptions> = {}): RouterOptions {
  return {
    queueMax: 4,
    queueTimeout: nanosFromMs(30_000),
    noWorkerGrace: nanosFromMs(5_000),
    localPrefillAfter: nanosFromMs(1_000),
    positionInterval: nanosFromMs(1_000),
    view: { silenceMax: nanosFromMs(5_000), returnGrace: nanosFromMs(5_000) },
    prediction: PREDICTION_DEFAULTS,
    prefixIndex: { blockCapacity: 1_024, holderCapacity: 64 },
    ...extra,
  };
}
