import type { AttachedWorker } from "./cluster-view.ts";
import type { Reserved } from "./reservations.ts";

/** What is assumed where nothing was measured. Conservative: a worker that is better than its guess is found out by its first report. */
export interface PredictionOptions {
  /** Prefill speed of a cluster in which no worker has measured one. */
  readonly prefillTokensPerSecond: number;
  /** Decode step of a cluster in which no worker has measured one. */
  readonly decodeStepMs: number;
  /** Raw KV that comes from one sidecar to another, where its receiver told of no measurement. Larger: split placements and fetches look cheaper than they are. */
  readonly kvBytesPerSecond: number;
  /** At which a store reads from disk. Larger: what lies there looks as near as what is in its memory. */
  readonly storeDiskBytesPerSecond: number;
  /** Reservation, ticket and first token of a split placement: three short calls. */
  readonly handoverMs: number;
  /** Share of a decode step that grows with its batch. Larger: decodes spread out earlier; smaller: they pack. */
  readonly batchShare: number;
}

export const PREDICTION_DEFAULTS: PredictionOptions = {
  prefillTokensPerSecond: 500,
  decodeStepMs: 50,
  kvBytesPerSecond: 500e6,
  storeDiskBytesPerSecond: 500e6,
  handoverMs: 2,
  batchShare: 0.5,
};

/** A worker's load as the router reckons with it. */
export interface ReckonedLoad {
  readonly freeBlockCount: number;
  readonly queuedPromptTokenCount: number;
  readonly sequenceCount: number;
}

/**
 * The worse of what the worker reported and what this router promised, without counting anything twice.
 *
 * At the moment of a report both describe the same requests, so the larger is taken. What the report has beyond our promises of
 * that moment is use that we did not cause (another router, KV not freed yet) and stays until the next report; our own promises
 * are then followed exactly, placement by placement: `use(now) = promised(now) + max(0, reported - promised(at the report))`.
 */
export function reckonLoad(worker: AttachedWorker, reserved: Reserved): ReckonedLoad {
  const { load, reservedAtReport, facts } = worker;
  if (load === undefined) return { freeBlockCount: 0, queuedPromptTokenCount: 0, sequenceCount: 0 };
  const usedBlockCount = Math.max(0, facts.blockCount - load.freeBlockCount);
  const foreignBlockCount = Math.max(0, usedBlockCount - reservedAtReport.blockCount);
  const foreignPromptTokenCount = Math.max(0, load.queuedPromptTokenCount - reservedAtReport.promptTokenCount);
  const foreignSequenceCount = Math.max(0, load.runningCount + load.waitingCount - reservedAtReport.sequenceCount);
  return {
    freeBlockCount: Math.max(0, facts.blockCount - reserved.blockCount - foreignBlockCount),
    queuedPromptTokenCount: reserved.promptTokenCount + foreignPromptTokenCount,
    sequenceCount: reserved.sequenceCount + foreignSequenceCount,
  };
}

/** The parts of a predicted TTFT, in milliseconds; the prediction is their sum. */
export interface TtftParts {
  readonly queueMs: number;
  readonly computeMs: number;
  /** What a hand-over adds; for a mixed worker, what is left of the step that runs. */
  readonly tailMs: number;
}

/** On one worker: prompts queued before it, its own, and on average all of the decode step in progress. */
export function aggregatedTtft(
  queuedPromptTokenCount: number,
  promptTokenCount: number,
  tokensPerSecond: number,
  stepInProgressMs: number,
): TtftParts {
  return {
    queueMs: (queuedPromptTokenCount / tokensPerSecond) * 1_000,
    computeMs: (promptTokenCount / tokensPerSecond) * 1_000,
    tailMs: stepInProgressMs,
  };
}

/** On two, of a prompt of which so much is computed, and whose KV travels so long: KV flows while chunks are still computed, so only what exceeds the compute time is added to the fixed part. */
export function splitTtft(
  queuedPromptTokenCount: number,
  uncachedTokenCount: number,
  tokensPerSecond: number,
  transferMs: number,
  options: PredictionOptions,
): TtftParts {
  const computeMs = (uncachedTokenCount / tokensPerSecond) * 1_000;
  return {
    queueMs: (queuedPromptTokenCount / tokensPerSecond) * 1_000,
    computeMs,
    tailMs: options.handoverMs + Math.max(0, transferMs - computeMs),
  };
}

/**
 * Gap between tokens once one more sequence has joined: the measured step, stretched by the batch's growth since. A step reads
 * all weights once, whatever the batch, so only a share of it grows.
 */
export function predictTbtMs(
  stepMs: number,
  measuredBatch: number,
  sequenceCount: number,
  options: PredictionOptions,
): number {
  const batch = Math.max(1, measuredBatch);
  const growth = Math.max(0, sequenceCount + 1 - batch) / batch;
  return stepMs * (1 + options.batchShare * growth);
}
