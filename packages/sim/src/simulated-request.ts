import {
  Attempts,
  addNanos,
  advanceDecodeHandover,
  advancePrefillHandover,
  type DecodeHandover,
  type DecodeHandoverEvent,
  type ErrorFacts,
  type Instant,
  nanosFromMs,
  newDecodeHandover,
  newPrefillHandover,
  type PlacementDecision,
  type PrefillHandover,
  type PrefillHandoverEvent,
  type PrefixFetchPlan,
  prefillMs,
  type SequenceId,
  type SequenceSpec,
  type Token,
} from "@kvasir/core";
import type { EventQueue } from "./event-queue.ts";
import { PREFIX_ROOT, type SimulatedPrompt } from "./prompts.ts";
import { type SimulatedWorker, TENANT_SCOPE } from "./simulated-worker.ts";
import type { TraceRequest } from "./trace.ts";

/** What a request needs of its surroundings. */
export interface RequestWorld {
  readonly events: EventQueue;
  /** One way, between any two processes. */
  readonly rpcNanos: number;
  worker(workerId: string): SimulatedWorker;
  /** When blocks of a prompt that somebody else holds are at a worker, and how many, from its first on; undefined: nobody has more. */
  borrow(plan: PrefixFetchPlan, hashes: Uint8Array, fromBlock: number): { blockCount: number; at: Instant } | undefined;
  firstToken(request: SimulatedRequest): void;
  /** Asks for another placement. */
  placeAgain(request: SimulatedRequest, failedWorkerIds: readonly string[]): void;
  ended(request: SimulatedRequest): void;
}

const TOKEN: Token = { tokenId: 1, topLogprobs: [] };
const ADMISSION_WAIT = nanosFromMs(60_000);
const LEASE = nanosFromMs(600_000);
const FENCE = nanosFromMs(1_000);
/** As long a rest as the real decode worker computes itself. */
const TAIL_TOKEN_MAX = 512;
/** As long a rest as it computes itself after a hit of the others. */
const HIT_TAIL_TOKEN_MAX = 128;
const HASH_BYTES = 16;
/** Steps in which the time of computing what is fetched is reckoned. */
const FETCH_STEP_TOKENS = 512;
const ATTEMPT_OPTIONS = { fruitlessMax: 3, placeWithin: nanosFromMs(10_000) };
const LOST: ErrorFacts = { reason: "unavailable", message: "the worker is gone" };

export type RequestOutcome = "running" | "finished" | "rejected" | "failed";

/**
 * One request as its gateway sees it, with both sides of the hand-over of its present attempt: the production state machines, whose effects are
 * carried out on simulated workers.
 */
export class SimulatedRequest {
  readonly key: number;
  readonly trace: TraceRequest;
  readonly arrivedAt: Instant;
  /** Without the candidates that were not chosen. */
  decision: PlacementDecision | undefined;
  outcome: RequestOutcome = "running";
  reason = "";
  placedAt: Instant | undefined;
  firstTokenAt: Instant | undefined;
  /** On a split cluster the first token that the decode worker computed. */
  secondTokenAt: Instant | undefined;
  lastTokenAt: Instant | undefined;
  tokenCount = 0;
  gapMaxNanos = 0;
  attemptCount = 0;
  /** Tokens of the prompt whose KV was reused where it was computed. */
  cachedTokenCount = 0;
  /** Of them, those that came from another worker or a store. */
  fetchedTokenCount = 0;
  readonly #world: RequestWorld;
  /** Gone with the request's end: a trace has more prompts than memory should hold. */
  #prompt: SimulatedPrompt | undefined;
  readonly #attempts = new Attempts(ATTEMPT_OPTIONS);
  /** Goes up with each attempt, so that what an earlier one set in motion is ignored. */
  #attempt = 0;
  #tokensBefore = 0;
  #decode: DecodeHandover | undefined;
  #prefill: PrefillHandover | undefined;
  #decodeWorker: SimulatedWorker | undefined;
  #prefillWorker: SimulatedWorker | undefined;
  #decodeSequence: SequenceId | undefined;
  /** Of the prompt, on the decode worker before anything was sent. */
  #residentTokenCount = 0;
  #prefillSequence: SequenceId | undefined;

  constructor(key: number, trace: TraceRequest, prompt: SimulatedPrompt, world: RequestWorld) {
    this.key = key;
    this.#prompt = prompt;
    this.trace = trace;
    this.#world = world;
    this.arrivedAt = world.events.now;
  }

  /** From arrival to the first token; undefined before it. */
  get ttftMs(): number | undefined {
    return this.firstTokenAt === undefined ? undefined : (this.firstTokenAt - this.arrivedAt) / 1e6;
  }

  /** Mean gap between tokens; 0 of a single token. */
  get tpotMs(): number {
    if (this.firstTokenAt === undefined || this.lastTokenAt === undefined || this.tokenCount < 2) return 0;
    return (this.lastTokenAt - this.firstTokenAt) / 1e6 / (this.tokenCount - 1);
  }

  placed(decision: PlacementDecision): void {
    const { events, rpcNanos } = this.#world;
    const [best] = decision.candidates;
    this.decision = { ...decision, candidates: [best] };
    this.placedAt ??= events.now;
    this.attemptCount++;
    const attempt = ++this.#attempt;
    this.#tokensBefore = this.tokenCount;
    this.#decodeWorker = this.#world.worker(best.decode.facts.workerId);
    this.#prefillWorker = best.prefill === undefined ? undefined : this.#world.worker(best.prefill.facts.workerId);
    events.after(2 * rpcNanos, () => {
      if (attempt !== this.#attempt) return;
      if (best.prefill === undefined) this.#startLocal(attempt);
      else this.#startDecode(attempt);
    });
  }

  rejected(reason: string): void {
    this.reason = reason;
    this.#end("rejected");
  }

  /** A worker is gone; what ran there is lost. */
  workerLost(worker: SimulatedWorker): void {
    if (this.outcome !== "running") return;
    if (worker === this.#decodeWorker) this.#attemptFailed(LOST, worker.facts.workerId);
    else if (worker === this.#prefillWorker && this.#decode !== undefined) {
      this.#prefillWorker = undefined;
      this.#applyDecode({ kind: "PeerLost", error: { ...LOST, workerId: worker.facts.workerId } });
    }
  }

  #startLocal(attempt: number): void {
    const worker = this.#decodeWorker as SimulatedWorker;
    if (!worker.isAlive) {
      this.#attemptFailed(LOST, worker.facts.workerId);
      return;
    }
    const known = Array.from({ length: this.tokenCount }, () => 1);
    const spec = {
      kind: "local" as const,
      ...this.#promptSpec(),
      maxTokens: this.trace.outputTokenCount,
      stopTokenIds: [],
      fetches: true,
      ...(known.length > 0 ? { outputTokenIds: known } : {}),
    };
    this.#decodeSequence = worker.submit(spec, addNanos(this.#world.events.now, ADMISSION_WAIT), {
      admitted: (_, cachedTokenCount, sequenceId) => {
        this.cachedTokenCount = cachedTokenCount;
        this.#fetchPrefix(worker, sequenceId);
      },
      refused: () => attempt === this.#attempt && this.#attemptFailed({ reason: "overloaded", message: "" }, ""),
      computed: () => undefined,
      sampled: (isLast) => attempt === this.#attempt && this.#token(isLast),
      openFetch: () => undefined,
    });
  }

  #startDecode(attempt: number): void {
    const { events } = this.#world;
    const worker = this.#decodeWorker as SimulatedWorker;
    if (!worker.isAlive) {
      this.#attemptFailed(LOST, worker.facts.workerId);
      return;
    }
    const waitUntil = addNanos(events.now, ADMISSION_WAIT);
    this.#decode = newDecodeHandover(waitUntil, 1);
    this.#prefill = undefined;
    const known = Array.from({ length: this.tokenCount }, () => 1);
    const spec = {
      kind: "decode" as const,
      ...this.#promptSpec(),
      maxTokens: this.trace.outputTokenCount,
      stopTokenIds: [],
      ...(known.length > 0 ? { outputTokenIds: known } : {}),
    };
    // The id is needed before `submit` answers: admission may come within it.
    const whenKnown: (() => void)[] = [];
    const current = () => attempt === this.#attempt;
    this.#decodeSequence = undefined;
    const sequenceId = worker.submit(spec, waitUntil, {
      admitted: (_, cachedTokenCount) => {
        this.#residentTokenCount = cachedTokenCount;
        const go = () =>
          current() && this.#applyDecode({ kind: "Reserved", heardBy: this.#leaseEnd(), cachedTokenCount });
        if (this.#decodeSequence === undefined) whenKnown.push(go);
        else go();
      },
      refused: () => current() && this.#attemptFailed({ reason: "overloaded", message: "no room" }, ""),
      computed: () => undefined,
      sampled: (isLast) => current() && this.#token(isLast),
      openFetch: () => undefined,
    });
    this.#decodeSequence = sequenceId;
    for (const go of whenKnown) go();
  }

  /** The prefill side of the hand-over begins: `Run` has arrived there. */
  #startPrefill(attempt: number): void {
    const { events } = this.#world;
    const worker = this.#prefillWorker;
    if (worker === undefined || !worker.isAlive) {
      this.#applyDecode({ kind: "PeerLost", error: { ...LOST, workerId: worker?.facts.workerId ?? "" } });
      return;
    }
    const waitUntil = addNanos(events.now, ADMISSION_WAIT);
    this.#prefill = newPrefillHandover(waitUntil);
    const current = () => attempt === this.#attempt && worker === this.#prefillWorker;
    const kvBytes = worker.facts.kvBytesPerToken;
    let sentTokenCount = this.#residentTokenCount;
    let isPlanned = false;
    const whenKnown: (() => void)[] = [];
    this.#prefillSequence = undefined;
    const spec = {
      kind: "prefill" as const,
      ...this.#promptSpec(),
      maxTokens: this.trace.outputTokenCount,
      stopTokenIds: [],
    };
    this.#prefillSequence = worker.submit(spec, waitUntil, {
      admitted: (_, cachedTokenCount, sequenceId) => {
        this.cachedTokenCount = cachedTokenCount;
        this.#fetchPrefix(worker, sequenceId);
        const go = () => current() && this.#applyPrefill({ kind: "BlocksTaken", leaseEnd: this.#leaseEnd() }, worker);
        if (this.#prefillSequence === undefined) whenKnown.push(go);
        else go();
      },
      refused: () => current() && this.#applyPrefill({ kind: "TimePassed" }, worker),
      computed: (tokenCount) => {
        if (!current()) return;
        if (!isPlanned) this.#applyPrefill({ kind: "StepPlanned" }, worker);
        isPlanned = true;
        // Frames flow as soon as their tokens are computed.
        const bytes = Math.max(0, tokenCount - sentTokenCount) * kvBytes;
        const arrival = worker.link.arrival(bytes, events.now);
        this.#decodeWorker?.receives(worker.facts, bytes, arrival);
        sentTokenCount = Math.max(sentTokenCount, tokenCount);
        events.at(arrival, () => {
          if (!current()) return;
          const progressBy = this.#leaseEnd();
          this.#applyDecode({ kind: "FramesVerified", verifiedTokenCount: tokenCount, progressBy });
        });
      },
      sampled: (isLast) =>
        current() && this.#applyPrefill({ kind: "TokenSampled", token: TOKEN, stopped: isLast }, worker),
      openFetch: () => undefined,
    });
    for (const go of whenKnown) go();
  }

  #applyPrefill(event: PrefillHandoverEvent, worker: SimulatedWorker): void {
    const { events, rpcNanos } = this.#world;
    if (this.#prefill === undefined) return;
    const attempt = this.#attempt;
    const { next, effects } = advancePrefillHandover(this.#prefill, event, events.now);
    this.#prefill = next;
    const sequenceId = this.#prefillSequence as SequenceId;
    const toDecode = (decodeEvent: () => DecodeHandoverEvent) =>
      events.after(rpcNanos, () => attempt === this.#attempt && this.#applyDecode(decodeEvent()));
    for (const effect of effects) {
      switch (effect.kind) {
        case "OpenExport":
          this.#applyPrefill({ kind: "ExportOpened" }, worker);
          break;
        case "SendTicket":
          worker.apply({ kind: "ExportOpened", sequenceId });
          toDecode(() => ({ kind: "TicketReceived", leaseEnd: this.#leaseEnd() }));
          break;
        case "SendFirstToken": {
          const { token, stopped } = effect;
          toDecode(() => ({ kind: "FirstTokenReceived", token, stopped }));
          break;
        }
        case "FreeBlocks":
          worker.apply({ kind: "SequenceClosed", sequenceId });
          worker.apply({ kind: "TransferClosed", sequenceId });
          break;
        case "EndStream": {
          const { error } = effect;
          if (error !== undefined) toDecode(() => ({ kind: "PeerLost", error }));
          break;
        }
      }
    }
  }

  /** What the placement says is fetched comes while the device computes for others, as far as it is there; what is late is computed. */
  #fetchPrefix(worker: SimulatedWorker, sequenceId: SequenceId): void {
    const { events } = this.#world;
    const { blockSize } = worker.facts;
    const fromBlock = Math.floor(this.cachedTokenCount / blockSize);
    const loan = this.#borrow(fromBlock, blockSize);
    if (loan === undefined) return;
    const span = { begin: fromBlock * blockSize, end: loan.blockCount * blockSize };
    worker.apply({ kind: "KvAwaited", sequenceId, span });
    const bytes = (span.end - span.begin) * worker.facts.kvBytesPerToken;
    worker.receives(this.decision?.candidates[0].fetch?.holder.facts ?? {}, bytes, loan.at);
    const attempt = this.#attempt;
    const { believed } = worker.options.profile;
    const computeMs = prefillMs(believed, span.end, this.cachedTokenCount, FETCH_STEP_TOKENS);
    const latest = addNanos(events.now, nanosFromMs(computeMs));
    events.at(Math.min(loan.at, latest) as Instant, () => {
      const isThere = loan.at <= latest;
      if (isThere && attempt === this.#attempt) {
        this.cachedTokenCount = span.end;
        this.fetchedTokenCount = span.end - span.begin;
      }
      worker.apply({ kind: "KvFetched", sequenceId, spans: isThere ? [span] : [] });
    });
  }

  #borrow(fromBlock: number, blockSize: number): { blockCount: number; at: Instant } | undefined {
    const plan = this.decision?.candidates[0].fetch;
    const hashes = this.#prompt?.chain.bytes();
    const wanted = Math.floor(Math.min(plan?.tokenEnd ?? 0, this.trace.promptTokenCount - 1) / blockSize);
    if (plan === undefined || hashes === undefined || wanted <= fromBlock) return undefined;
    const loan = this.#world.borrow(plan, hashes.slice(0, wanted * HASH_BYTES), fromBlock);
    return loan !== undefined && loan.blockCount > fromBlock ? loan : undefined;
  }

  #applyDecode(event: DecodeHandoverEvent): void {
    const { events, rpcNanos } = this.#world;
    if (this.#decode === undefined) return;
    const attempt = this.#attempt;
    const plan = {
      promptTokenCount: this.trace.promptTokenCount,
      tailTokenMax: TAIL_TOKEN_MAX,
      hitTailTokenMax: HIT_TAIL_TOKEN_MAX,
      fenceWithin: FENCE,
    };
    const { next, effects } = advanceDecodeHandover(this.#decode, event, plan, events.now);
    this.#decode = next;
    const worker = this.#decodeWorker as SimulatedWorker;
    const sequenceId = this.#decodeSequence as SequenceId;
    const prefillWorker = this.#prefillWorker;
    const toPrefill = (prefillEvent: PrefillHandoverEvent) => {
      if (prefillWorker === undefined) return;
      events.after(rpcNanos, () => {
        if (attempt === this.#attempt || this.outcome === "finished") this.#applyPrefill(prefillEvent, prefillWorker);
      });
    };
    for (const effect of effects) {
      switch (effect.kind) {
        case "RequestPrefill":
          events.after(rpcNanos, () => attempt === this.#attempt && this.#startPrefill(attempt));
          break;
        case "OpenFetch":
          worker.apply({ kind: "KvOffered", sequenceId });
          break;
        case "SendFirstToken":
          // A request that goes on after a loss has it already.
          if (this.#tokensBefore === 0) this.#token(effect.final);
          break;
        case "Join":
          worker.apply({ kind: "KvArrived", sequenceId, firstTokenId: effect.firstTokenId });
          worker.apply({ kind: "TransferClosed", sequenceId });
          toPrefill({ kind: "PeerReceived" });
          break;
        case "StopTransfer":
          events.after(0, () => {
            if (attempt === this.#attempt) this.#applyDecode({ kind: "Fenced", heardBy: this.#leaseEnd() });
          });
          break;
        case "ComputeTail": {
          const { verifiedTokenCount, token } = effect;
          if (prefillWorker === undefined || this.#prefill === undefined) this.cachedTokenCount = verifiedTokenCount;
          worker.apply({ kind: "KvLost", sequenceId, verifiedTokenCount, firstTokenId: token?.tokenId });
          worker.apply({ kind: "TransferClosed", sequenceId });
          break;
        }
        case "AbandonTransfer":
          toPrefill({ kind: "PeerClosed" });
          worker.apply({ kind: "SequenceClosed", sequenceId });
          worker.apply({ kind: "TransferClosed", sequenceId });
          break;
        case "EndStream":
          if (effect.error !== undefined) this.#attemptFailed(effect.error, worker.facts.workerId);
          break;
      }
    }
  }

  #token(isLast: boolean): void {
    const { now } = this.#world.events;
    if (this.firstTokenAt === undefined) {
      this.firstTokenAt = now;
      this.#world.firstToken(this);
    } else this.gapMaxNanos = Math.max(this.gapMaxNanos, now - (this.lastTokenAt ?? now));
    this.lastTokenAt = now;
    this.tokenCount++;
    if (this.tokenCount === 2) this.secondTokenAt = now;
    if (isLast) this.#end("finished");
  }

  #attemptFailed(error: ErrorFacts, decodeWorkerId: string): void {
    if (this.outcome !== "running") return;
    this.#attempt++;
    this.#leaveWorkers();
    const newTokenCount = this.tokenCount - this.#tokensBefore;
    const decision = this.#attempts.failed({ decodeWorkerId, newTokenCount, error }, this.#world.events.now);
    if (decision.kind === "give_up") {
      this.reason = error.message;
      this.#end("failed");
    } else this.#world.placeAgain(this, this.#attempts.failedWorkerIds);
  }

  /** What a live worker still holds for the attempt goes; the real ones learn it from broken streams. */
  #leaveWorkers(): void {
    const held = [
      [this.#decodeWorker, this.#decodeSequence],
      [this.#prefillWorker, this.#prefillSequence],
    ] as const;
    for (const [worker, sequenceId] of held) {
      if (worker === undefined || sequenceId === undefined) continue;
      worker.apply({ kind: "SequenceClosed", sequenceId });
      worker.apply({ kind: "TransferClosed", sequenceId });
    }
    this.#decode = undefined;
    this.#prefill = undefined;
    this.#decodeSequence = undefined;
    this.#prefillSequence = undefined;
  }

  #promptSpec(): Pick<SequenceSpec, "promptTokenIds" | "prefixRoot" | "promptChain" | "scope"> {
    const { tokenIds, chain } = this.#prompt as SimulatedPrompt;
    const scope = { tenantScope: TENANT_SCOPE, requestId: `${this.key}` };
    return { promptTokenIds: tokenIds, prefixRoot: PREFIX_ROOT, promptChain: chain, scope };
  }

  #leaseEnd(): Instant {
    return addNanos(this.#world.events.now, LEASE);
  }

  #end(outcome: RequestOutcome): void {
    if (this.outcome !== "running") return;
    this.outcome = outcome;
    this.#prompt = undefined;
    this.#world.ended(this);
  }
}
