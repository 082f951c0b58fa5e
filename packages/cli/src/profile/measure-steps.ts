import type { StepCost } from "@kvasir/core";
import { type DescribeClusterResponse, KvDtype, WorkerRole } from "@kvasir/proto";
import { FIRST_TOKEN_MESSAGES, type MeasuredProfile, type Trace } from "@kvasir/sim";
import { replayLive } from "../replay/replay-live.ts";
import type { ReplayRecord } from "../replay/replay-record.ts";

/** Where requests go, and who knows what they cost. */
export interface MeasureTarget {
  /** Of the gateway, without a path. */
  readonly url: string;
  readonly model: string;
  readonly describe: () => Promise<DescribeClusterResponse>;
  /** Prompts of equal seeds are equal: take another for a cluster that has seen one. */
  readonly seed: number;
  /** Longest prompt. Larger: a better fit of long ones, and more time. */
  readonly promptTokenMax: number;
}

/** Prompts asked alone, whose shapes tell the terms of a step's cost apart. */
const PROMPT_SHARES = [1, 1 / 16, 1 / 2, 1 / 8, 3 / 4, 1 / 4];
/** Batches of answers: how many, the part of the longest prompt that each has, tokens of each. */
const BATCHES: readonly (readonly [count: number, share: number, tokens: number])[] = [
  [1, 1 / 16, 24],
  [8, 1 / 16, 24],
  [4, 1 / 4, 24],
  [16, 1 / 16, 16],
  [2, 1 / 2, 24],
];
const ROUNDS = 2;
const PROBES = 8;
const PROBE_TOKENS = 24;
/** Workers report at least once a second. */
const REPORT_WAIT_MS = 2_500;
const BYTES: Readonly<Partial<Record<KvDtype, number>>> = { [KvDtype.F32]: 4, [KvDtype.F16]: 2, [KvDtype.BF16]: 2 };

/**
 * Has a live cluster, which should do nothing else, compute prompts and answers of many shapes, and asks its router what workers found their
 * steps to cost. Overheads are what is left of the client's times: medians of short requests asked one after another.
 */
export async function measureSteps(target: MeasureTarget): Promise<MeasuredProfile> {
  const { promptTokenMax, describe } = target;
  const asker = new Asker(target);
  const tokens = (share: number) => Math.max(4, Math.round(share * promptTokenMax));
  for (let round = 0; round < ROUNDS; round++) {
    for (const [index, share] of PROMPT_SHARES.entries()) {
      await asker.ask(1, tokens(share), 4);
      const batch = BATCHES[index];
      if (batch !== undefined) await asker.ask(batch[0], tokens(batch[1]), batch[2]);
    }
  }
  const probes: ReplayRecord[] = [];
  for (let probe = 0; probe < PROBES; probe++) probes.push(...(await asker.ask(1, PROBE_TOKENS, PROBE_TOKENS)));
  await new Promise((resolve) => setTimeout(resolve, REPORT_WAIT_MS));
  return profileFrom(await describe(), target.model, probes);
}

class Asker {
  readonly #target: MeasureTarget;
  #nextId: number;

  constructor(target: MeasureTarget) {
    this.#target = target;
    this.#nextId = target.seed;
  }

  /** So many requests at once, until all are answered. */
  async ask(count: number, promptTokenCount: number, outputTokenCount: number): Promise<readonly ReplayRecord[]> {
    const { url, model } = this.#target;
    const requests = Array.from({ length: count }, () => {
      return { arrivalMs: 0, promptTokenCount, outputTokenCount, prefixIds: [this.#nextId++], tenant: "profile" };
    });
    const trace: Trace = { name: "profile", requests, prefixBlockSize: 1 << 20 };
    const options = { url, model, tokenBase: 300, tokenRange: 500, salt: 0, targets: undefined, timeoutMs: 300_000 };
    const records = await replayLive(trace, options);
    const failed = records.find(({ outcome }) => outcome !== "finished");
    if (failed !== undefined)
      throw new Error(`a request of ${promptTokenCount} tokens was ${failed.outcome}: ${failed.reason}`);
    return records;
  }
}

function profileFrom(
  { workers }: DescribeClusterResponse,
  model: string,
  probes: readonly ReplayRecord[],
): MeasuredProfile {
  const serving = workers.filter(({ hello }) => hello?.model === model);
  const costs = (...roles: WorkerRole[]) =>
    serving.flatMap(({ hello, load }) =>
      hello !== undefined && roles.includes(hello.role) && load?.stepCost !== undefined ? [load.stepCost] : [],
    );
  const prefill = meanCost(costs(WorkerRole.PREFILL, WorkerRole.MIXED));
  const decode = meanCost(costs(WorkerRole.DECODE, WorkerRole.MIXED));
  const hello = serving[0]?.hello;
  const layout = hello?.layout;
  if (prefill === undefined || decode === undefined || hello === undefined || layout === undefined) {
    throw new Error(`no worker of ${model} tells what its steps cost; has it answered anything?`);
  }
  const perHead = layout.layerCount * layout.kvHeadCount * layout.headSize;
  const decodeMs = decode.fixedMs + decode.decodeMs + 1.5 * PROBE_TOKENS * decode.contextTokenMs;
  const promptMs =
    prefill.fixedMs +
    (prefill.promptStepMs ?? 0) +
    PROBE_TOKENS * prefill.promptTokenMs +
    PROBE_TOKENS ** 2 * prefill.attentionMs;
  const stepOverheadMs = Math.max(0, median(probes.map(({ tpotMs }) => tpotMs)) - decodeMs);
  const overheadMs = median(probes.map(({ ttftMs }) => ttftMs)) - promptMs - stepOverheadMs;
  const isSplit = !serving.some((worker) => worker.hello?.role === WorkerRole.MIXED);
  return {
    name: `${model}, measured`,
    prefill,
    decode,
    blockSize: layout.blockSize,
    blockCount: hello.blockCount,
    kvBytesPerToken: 2 * perHead * (BYTES[layout.dtype] ?? 4),
    contextLength: hello.contextLength,
    messageMs: Math.max(0, overheadMs) / FIRST_TOKEN_MESSAGES[isSplit ? "split" : "aggregated"],
    stepOverheadMs,
  };
}

function meanCost(costs: readonly StepCost[]): StepCost | undefined {
  if (costs.length === 0) return undefined;
  const mean = (of: (cost: StepCost) => number) => costs.reduce((sum, cost) => sum + of(cost), 0) / costs.length;
  return {
    fixedMs: mean(({ fixedMs }) => fixedMs),
    promptStepMs: mean(({ promptStepMs = 0 }) => promptStepMs),
    promptTokenMs: mean(({ promptTokenMs }) => promptTokenMs),
    attentionMs: mean(({ attentionMs }) => attentionMs),
    decodeMs: mean(({ decodeMs }) => decodeMs),
    contextTokenMs: mean(({ contextTokenMs }) => contextTokenMs),
  };
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >>> 1] ?? 0;
}
