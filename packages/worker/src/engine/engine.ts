import {
  type BlockId,
  type Instant,
  type KvasirError,
  type RequestScope,
  type SchedulerEffect,
  type SchedulerEvent,
  type SequenceEnd,
  type SequenceId,
  type SequenceKind,
  type SequenceSpec,
  type StepPlan,
  StepScheduler,
  type StepSchedulerOptions,
  type Token,
  unreachable,
} from "@kvasir/core";
import type { ExecuteResponse, SamplingParams } from "@kvasir/proto";
import { errorFromService } from "@kvasir/rpc";
import { now } from "../clock.ts";
import { type ExecuteStream, sidecarLost } from "../kernel/kernel.ts";
import { StepMeter, type StepTimes } from "./step-meter.ts";
import { requestFromPlan, resultsFromResponse, type StartFacts, samplingNeedsPrompt } from "./step-wire.ts";

export interface SequenceRequest extends Pick<StartFacts, "sampling" | "traceparent"> {
  readonly kind: SequenceKind;
  readonly promptTokenIds: readonly number[];
  /** Clipped to the context; equals `sampling.maxTokens`. */
  readonly maxTokens: number;
  /** Output that is known already. */
  readonly outputTokenIds?: readonly number[];
  /** Further answers to the same prompt. */
  readonly branches?: readonly BranchRequest[];
  readonly reuse: Pick<SequenceSpec, "prefixRoot" | "scope" | "computesWholePrompt" | "fetches">;
}

export interface BranchRequest {
  readonly sampling: SamplingParams;
  readonly outputTokenIds: readonly number[];
  readonly listener: Pick<SequenceListener, "sampled" | "failed">;
}

/** What the owner of a sequence is told. Every sequence ends by `refused`, by a token with `end`, by `failed`, or by its owner. */
export interface SequenceListener {
  /** `blockIds`: to be published, for prefill kind. `cachedTokenCount`: of its input, those whose KV was here. */
  admitted(blockIds: readonly BlockId[], cachedTokenCount: number): void;
  refused(): void;
  /** Decode kind: the blocks for the prompt's KV, answer of `KvOffered`. */
  fetchOpened?(blockIds: readonly BlockId[]): void;
  /** Its first step is on its way to the device; by now more may be cached. */
  planned?(cachedTokenCount: number): void;
  /** A step that computed some of its prompt was answered. */
  prompted?(): void;
  sampled(token: Token, tokenIndex: number, end: SequenceEnd | undefined): void;
  /** The incarnation is lost and the sequence with it. */
  failed(error: KvasirError): void;
}

interface Entry {
  readonly listener: SequenceListener;
  readonly facts: StartFacts;
}

interface SentStep {
  readonly plan: StepPlan;
  readonly sentAt: Instant;
  /** Another step was unanswered when this one was sent: the device should not have waited for it. */
  readonly pipelined: boolean;
}

/** Runs the scheduler against one Execute stream: keeps two steps in flight, wakes on events only, and tells owners what happened. */
export class Engine {
  readonly scheduler: StepScheduler;
  readonly meter = new StepMeter();
  /** Steps answered so far. */
  answeredCount = 0;
  readonly #stream: ExecuteStream;
  readonly #entries = new Map<number, Entry>();
  readonly #sent: SentStep[] = [];
  #lastSequenceId = 0;
  #lastAnswerAt = 0 as Instant;
  #pumpQueued = false;
  #refusalTimer: NodeJS.Timeout | undefined;
  #lost: KvasirError | undefined;
  readonly #hooks: EngineHooks;

  constructor(stream: ExecuteStream, options: StepSchedulerOptions, hooks: EngineHooks) {
    this.scheduler = new StepScheduler(options);
    this.#stream = stream;
    this.#hooks = hooks;
    stream.on("data", (response: ExecuteResponse) => this.#answer(response));
    stream.on("error", (error) => {
      this.#hooks.lost(sidecarLost(`its Execute stream broke: ${errorFromService(error).message}`));
    });
    stream.on("end", () => this.#hooks.lost(sidecarLost("it ended the Execute stream")));
  }

  /** Queues a sequence, which the caller has checked with `scheduler.fits`. Listeners are never called before this returns. */
  submit(request: SequenceRequest, waitUntil: Instant, listener: SequenceListener): SequenceId {
    const [sequenceId] = this.submitGroup(request, waitUntil, listener);
    return sequenceId;
  }

  /** The same, answering with the sequence and its branches; each is closed by itself. */
  submitGroup(
    request: SequenceRequest,
    waitUntil: Instant,
    listener: SequenceListener,
  ): readonly [SequenceId, ...SequenceId[]] {
    const { branches = [] } = request;
    const sequenceId = ++this.#lastSequenceId as SequenceId;
    const lost = this.#lost;
    if (lost) {
      queueMicrotask(() => listener.failed(lost));
      return [sequenceId];
    }
    const { kind, promptTokenIds, maxTokens, sampling, traceparent } = request;
    const facts = { sampling, traceparent, promptTokenIds: samplingNeedsPrompt(sampling) ? promptTokenIds : [] };
    this.#entries.set(sequenceId, { listener, facts });
    const branchSpecs = branches.map((branch) => {
      const branchId = ++this.#lastSequenceId as SequenceId;
      const heard = { ...DEAF, ...branch.listener };
      this.#entries.set(branchId, { listener: heard, facts: { ...facts, sampling: branch.sampling } });
      return { sequenceId: branchId, outputTokenIds: branch.outputTokenIds };
    });
    const { outputTokenIds = [], reuse } = request;
    const { stopTokenIds } = sampling;
    const common = { sequenceId, kind, promptTokenIds, maxTokens, stopTokenIds, outputTokenIds, ...reuse };
    const spec = { ...common, branches: branchSpecs };
    queueMicrotask(() => this.apply({ kind: "SequenceArrived", spec, waitUntil }));
    return [sequenceId, ...branchSpecs.map((branch) => branch.sequenceId)];
  }

  /** Wants nothing more of a sequence; its listener is not called again. */
  close(sequenceId: SequenceId): void {
    // A sequence that was submitted in this very tick arrives first.
    queueMicrotask(() => this.apply({ kind: "SequenceClosed", sequenceId }));
    const entry = this.#entries.get(sequenceId);
    if (entry) this.#entries.set(sequenceId, { ...entry, listener: DEAF });
  }

  apply(event: SchedulerEvent): void {
    if (!this.#lost) this.#performAll(this.scheduler.apply(event, now()));
  }

  /** The incarnation is over: every owner is told, nothing more is planned. */
  fail(error: KvasirError): void {
    if (this.#lost) return;
    this.#lost = error;
    clearTimeout(this.#refusalTimer);
    this.#stream.cancel();
    const entries = [...this.#entries.values()];
    this.#entries.clear();
    for (const { listener } of entries) listener.failed(error);
  }

  /** Sequences with an owner who still listens; for audits. */
  isOwned(sequenceId: number): boolean {
    const entry = this.#entries.get(sequenceId);
    return entry !== undefined && entry.listener !== DEAF;
  }

  /** How long the oldest step has been unanswered, in milliseconds; 0 when none is. */
  oldestStepMs(): number {
    const oldest = this.#sent[0];
    return oldest ? (now() - Math.max(oldest.sentAt, this.#lastAnswerAt)) / 1e6 : 0;
  }

  #performAll(effects: readonly SchedulerEffect[]): void {
    for (const effect of effects) this.#perform(effect);
    this.#armRefusal();
    this.#queuePump();
    this.#hooks.changed();
  }

  #perform(effect: SchedulerEffect): void {
    const entry = this.#entries.get(effect.sequenceId);
    if (!entry) return;
    const { listener } = entry;
    switch (effect.kind) {
      case "AnnounceAdmission":
        listener.admitted(effect.blockIds, effect.cachedTokenCount);
        break;
      case "RefuseSequence":
        this.#entries.delete(effect.sequenceId);
        listener.refused();
        break;
      case "OpenFetch":
        listener.fetchOpened?.(effect.blockIds);
        break;
      case "DeliverToken":
        listener.sampled(effect.token, effect.tokenIndex, effect.end);
        break;
      case "TellUsedBlocks":
        this.#hooks.blocksUsed(effect.scope, effect.hashes);
        break;
      case "ForgetSequence":
        this.#entries.delete(effect.sequenceId);
        break;
      default:
        unreachable(effect);
    }
  }

  /** Events of one tick are planned together. */
  #queuePump(): void {
    if (this.#pumpQueued) return;
    this.#pumpQueued = true;
    queueMicrotask(() => {
      this.#pumpQueued = false;
      this.#pump();
    });
  }

  #pump(): void {
    while (!this.#lost) {
      const plan = this.scheduler.plan();
      if (!plan) return;
      this.#sent.push({ plan, sentAt: now(), pipelined: this.#sent.length > 0 });
      this.#stream.write(requestFromPlan(plan, (sequenceId) => this.#factsOf(sequenceId)));
      for (const { sequenceId, cachedTokenCount } of plan.starts) {
        this.#entries.get(sequenceId)?.listener.planned?.(cachedTokenCount);
      }
    }
  }

  #factsOf(sequenceId: number): StartFacts {
    const entry = this.#entries.get(sequenceId);
    if (!entry) throw new Error(`sequence ${sequenceId} is started after it was forgotten`);
    return entry.facts;
  }

  #answer(response: ExecuteResponse): void {
    const step = this.#sent.shift();
    this.answeredCount++;
    if (this.#lost) return;
    const answeredAt = now();
    if (step) {
      const wallNanos = answeredAt - Math.max(step.sentAt, this.#lastAnswerAt);
      const deviceNanos = Number(response.deviceNanos);
      this.meter.observe(step.plan, deviceNanos);
      const idleNanos = step.pipelined ? Number(response.deviceIdleNanos) : undefined;
      this.#hooks.stepAnswered({ wallNanos, deviceNanos, idleNanos });
    }
    this.#lastAnswerAt = answeredAt;
    let effects: readonly SchedulerEffect[];
    try {
      const results = resultsFromResponse(response);
      effects = this.scheduler.apply({ kind: "StepCompleted", stepId: Number(response.stepId), results }, answeredAt);
    } catch (error) {
      // The sidecar answered something else than was asked: nothing it holds can be trusted.
      const detail = error instanceof Error ? error.message : String(error);
      this.#hooks.lost(sidecarLost(`it broke the step protocol: ${detail}`));
      return;
    }
    this.#performAll(effects);
    if (step) this.#tellPrompted(step.plan);
  }

  #tellPrompted({ slices, decodeTokenCount }: StepPlan): void {
    for (const { sequenceId } of slices.slice(decodeTokenCount)) this.#entries.get(sequenceId)?.listener.prompted?.();
  }

  #armRefusal(): void {
    clearTimeout(this.#refusalTimer);
    if (this.scheduler.waitingCount === 0) return;
    const next = this.scheduler.nextRefusal();
    if (next === undefined) return;
    const delayMs = Math.max(0, Math.ceil((next - now()) / 1e6));
    this.#refusalTimer = setTimeout(() => this.apply({ kind: "TimePassed" }), delayMs);
  }
}

export interface EngineHooks {
  /** The load changed. Called often; must be cheap. */
  changed(): void;
  stepAnswered(times: StepTimes): void;
  /** A request ended; its first blocks stay cached for now. */
  blocksUsed(scope: RequestScope, hashes: Uint8Array): void;
  /** The stream broke or its peer did. Ends the incarnation. */
  lost(error: KvasirError): void;
}

const DEAF: SequenceListener = {
  admitted: () => undefined,
  refused: () => undefined,
  sampled: () => undefined,
  failed: () => undefined,
};
