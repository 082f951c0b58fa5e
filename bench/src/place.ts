import {
  type Instant,
  type MeasuredLink,
  nanosFromMs,
  PREDICTION_DEFAULTS,
  type ReportedLoad,
  type RequestKey,
  RouterState,
  type WorkerFacts,
} from "@kvasir/core";
import { exponential, randomOf } from "@kvasir/sim";
import { conversationHashes, holderName, type PrefixWorkload } from "./lib/prefix-workload.ts";
import { option, percentile, publish, table } from "./lib/report.ts";

// What one placement costs the router: events of requests in a row on one thread, with the workers' caches in its index. Every request has
// targets, a prompt of which some workers have a part, and is answered before the next but sixty-fourth comes.
const REQUESTS = Number(option("requests", "20000"));
const BLOCK_SIZE = 32;
const FINGERPRINT = "00".repeat(16);
const IN_FLIGHT_PER_WORKER = 8;
/** Links that each worker has measured, to workers at random, from a fifth to five times as fast as assumed. */
const LINKS = Number(option("links", "0"));

interface Fleet {
  readonly workers: number;
  readonly blocks: number;
  readonly promptTokens: number;
}

/** Of one fleet only. */
const ONLY = Number(option("workers", "0"));
const FLEETS: readonly Fleet[] = [
  { workers: 16, blocks: 1_000_000, promptTokens: 4_096 },
  { workers: 256, blocks: 10_000_000, promptTokens: 4_096 },
  { workers: 256, blocks: 10_000_000, promptTokens: 100_000 },
  { workers: 1_024, blocks: 10_000_000, promptTokens: 4_096 },
];

const rows = FLEETS.filter(({ workers }) => ONLY === 0 || workers === ONLY).map((fleet) => measure(fleet));
publish(
  "place",
  "What a placement costs the router",
  `Arrival, choice, first token and end of ${REQUESTS.toLocaleString("en")} requests with targets, one after another on one thread; a quarter of the workers
prefills, the others decode, ${IN_FLIGHT_PER_WORKER} requests run on each. The index holds the blocks of all workers' caches, ${BLOCK_SIZE} tokens each; a prompt's hashes come with the
request. Time of a placement is from the arrival to the decision with its candidates, scores and reason.

${table(["workers", "blocks in the index", "prompt tokens", "placements/s", "p50 ms", "p99 ms", "CPU ms a request, all events"], rows)}`,
);

function measure({ workers, blocks, promptTokens }: Fleet): string[] {
  const length = Math.floor(promptTokens / BLOCK_SIZE);
  const copies = 2;
  const workload: PrefixWorkload = {
    conversations: Math.round(blocks / length / copies),
    length,
    shared: 16,
    copies,
    holders: workers,
    batch: length,
    matches: 0,
  };
  const state = new RouterState({
    queueMax: 1_024,
    queueTimeout: nanosFromMs(30_000),
    noWorkerGrace: nanosFromMs(5_000),
    localPrefillAfter: nanosFromMs(1_000),
    positionInterval: nanosFromMs(1_000),
    view: { silenceMax: nanosFromMs(1e9), returnGrace: nanosFromMs(5_000) },
    prediction: PREDICTION_DEFAULTS,
    prefixIndex: { blockCapacity: Math.round(1.2 * blocks), holderCapacity: 32 * Math.ceil((workers + 64) / 32) },
  });
  let nowMs = 0;
  const now = () => nanosFromMs(nowMs) as number as Instant;
  const linkRandom = randomOf(5);
  const sequences: number[] = [];
  for (let index = 0; index < workers; index++) {
    state.apply({ kind: "WorkerAttached", streamId: index + 1, epoch: 1, sequence: 1, facts: factsOf(index) }, now());
    sequences[index] = 1;
    report(index);
  }
  const cacheSequences = new Map<number, number>();
  for (let conversation = 0; conversation < workload.conversations; conversation++) {
    const hashes = conversationHashes(workload, conversation);
    for (let copy = 0; copy < copies; copy++) {
      const index = Number(holderName(workload, conversation, copy).slice(1));
      const cacheSequence = (cacheSequences.get(index) ?? 0) + 1;
      cacheSequences.set(index, cacheSequence);
      const change = {
        kind: "BlocksStored" as const,
        epoch: 1,
        sequence: cacheSequence,
        medium: "device" as const,
        hashes,
      };
      const sequence = (sequences[index] ?? 1) + 1;
      sequences[index] = sequence;
      state.apply({ kind: "WorkerCacheChanged", streamId: index + 1, epoch: 1, sequence, change }, now());
    }
  }

  const random = randomOf(3);
  const live: RequestKey[] = [];
  const times: number[] = [];
  const cpuBefore = process.cpuUsage();
  let othersMs = 0;
  for (let number = 0; number < REQUESTS; number++) {
    nowMs += exponential(random, workers / 20);
    const hashes = conversationHashes(workload, Math.floor(random() * workload.conversations));
    const prompt = Math.floor(promptTokens * (0.6 + 0.4 * random()));
    const request = {
      model: "m",
      promptTokenCount: prompt,
      maxTokens: 256,
      tenant: "t",
      objectives: { ttftMs: 5_000, tbtMs: 100, mayBeLate: true },
      promptHashes: [
        {
          fingerprint: FINGERPRINT,
          blockSize: BLOCK_SIZE,
          hashes: hashes.subarray(0, 16 * Math.floor(prompt / BLOCK_SIZE)),
        },
      ],
    };
    const key = number as RequestKey;
    const start = performance.now();
    const effects = state.apply({ kind: "RequestArrived", key, request }, now());
    times.push(performance.now() - start);
    if (effects[0]?.kind !== "SendPlacement") throw new Error(`request ${number}: ${JSON.stringify(effects[0]?.kind)}`);
    live.push(key);
    const otherStart = performance.now();
    const answered = live[live.length - 4];
    if (answered !== undefined) state.apply({ kind: "FirstTokenArrived", key: answered }, now());
    if (live.length > IN_FLIGHT_PER_WORKER * workers) {
      state.apply({ kind: "RequestEnded", key: live.shift() as RequestKey }, now());
    }
    if (number % 4 === 0) report(Math.floor(random() * workers));
    othersMs += performance.now() - otherStart;
  }
  const { user, system } = process.cpuUsage(cpuBefore);
  const placeMs = times.reduce((sum, value) => sum + value, 0);
  // Of the CPU time the loop's own making of prompts is none of the router's.
  const share = (placeMs + othersMs) / ((user + system) / 1e3);
  return [
    workers.toLocaleString("en"),
    blocks.toLocaleString("en"),
    promptTokens.toLocaleString("en"),
    Math.round((REQUESTS / placeMs) * 1_000).toLocaleString("en"),
    percentile(times, 50).toFixed(3),
    percentile(times, 99).toFixed(3),
    ((Math.min(1, share) * (user + system)) / 1e3 / REQUESTS).toFixed(3),
  ];

  function measuredLink(): MeasuredLink {
    const source = transferAddressOf(Math.floor(linkRandom() * workers));
    const exact = (PREDICTION_DEFAULTS.kvBytesPerSecond / 1e3) * 5 ** (2 * linkRandom() - 1);
    return { source, measuredAt: now(), rates: { exact, near: 3 * exact, fast: 5 * exact } };
  }

  function report(index: number): void {
    const sequence = (sequences[index] ?? 1) + 1;
    sequences[index] = sequence;
    const load: ReportedLoad = {
      freeBlockCount: 1 << 20,
      runningCount: 4,
      waitingCount: 0,
      queuedPromptTokenCount: 0,
      contextTokenCount: 16_000,
      prefillTokensPerSecond: 30_000,
      decodeStepMs: 10,
      stepCost: { fixedMs: 6.5, promptTokenMs: 0.03, attentionMs: 4.8e-7, decodeMs: 0.03, contextTokenMs: 5.2e-5 },
      isDraining: false,
    };
    // All of them at first, then one at a time.
    const links = Array.from({ length: LINKS === 0 ? 0 : sequence === 2 ? LINKS : 1 }, () => measuredLink());
    state.apply({ kind: "WorkerReported", streamId: index + 1, epoch: 1, sequence, load, links }, now());
  }
}

function factsOf(index: number): WorkerFacts {
  const workerId = `h${index}`;
  return {
    workerId,
    role: index % 4 === 0 ? "prefill" : "decode",
    address: `${workerId}:1`,
    transferAddress: transferAddressOf(index),
    model: "m",
    fingerprint: FINGERPRINT,
    exactFingerprint: FINGERPRINT,
    kvModel: { modelRevision: "bench", layerCount: 1, kvHeadCount: 1, headSize: 1, rope: "none" },
    kvDtype: "bf16",
    blockSize: BLOCK_SIZE,
    kvBytesPerToken: 131_072,
    blockCount: 1 << 20,
    contextLength: 131_072,
  };
}

function transferAddressOf(index: number): string {
  return `h${index}:9`;
}
