import { expect } from "vitest";
import { prefixRoot } from "../../prefix/block-hash.ts";
import type { TokenSpan } from "../../prefix-fetch/token-span.ts";
import { type Instant, nanosFromMs } from "../../time.ts";
import { clipMaxTokens } from "../capacity.ts";
import type { SchedulerEffect, SchedulerEvent, SequenceId, SequenceKind, SequenceSpec, StepPlan } from "../events.ts";
import { StepScheduler } from "../step-scheduler.ts";
import { ModelDevice } from "./model-device.ts";

const CONTEXT_LENGTH = 64;
export const STOP_TOKEN = 7;
const FINGERPRINT = new Uint8Array(16);

/** Over all runs, so that the test is known to test something. */
export const reused = { atAdmission: 0, later: 0, copied: 0, evicted: 0, fetched: 0, jumped: 0 };

type Transfer = "none" | "publishing" | "open" | "offered";

/** The shell around the scheduler, as plainly as can be, with every promise of the scheduler checked on the way. */
export class World {
  readonly blockSize: number;
  readonly scheduler: StepScheduler;
  readonly specs = new Map<number, SequenceSpec>();
  readonly device = new ModelDevice(this);
  readonly transfers = new Map<number, Transfer>();
  readonly delivered = new Map<number, number[]>();
  readonly ended = new Map<number, string>();
  readonly closed = new Set<number>();
  readonly arrivals: number[] = [];
  readonly admissions: number[] = [];
  /** Prompts in the order in which they became computable. */
  readonly promptOrder: number[] = [];
  readonly refused = new Set<number>();
  readonly live = new Set<number>();
  /** Of branches. */
  readonly parents = new Map<number, number>();
  /** Tokens of the prompt that had arrived when no more would come. */
  readonly kept = new Map<number, number>();
  /** Of those, the ones whose first token was known. */
  readonly tokenKnown = new Set<number>();
  readonly tenants = new Map<number, number>();
  /** Tokens whose KV was there at admission, and at the first chunk. */
  readonly cachedAtAdmission = new Map<number, number>();
  readonly cached = new Map<number, number>();
  /** Where fetches write. */
  readonly fetchBlocks = new Map<number, readonly number[]>();
  /** Of prompts that may be fetched: where they lie. */
  readonly admittedBlocks = new Map<number, readonly number[]>();
  /** What a fetch may write. */
  readonly awaited = new Map<number, TokenSpan>();
  /** What fetches that ended brought. */
  readonly fetched = new Map<number, readonly TokenSpan[]>();
  now = 0 as Instant;

  constructor(blockCount: number, blockSize: number, tokenBudget: number, sequenceCountMax: number) {
    this.blockSize = blockSize;
    this.scheduler = new StepScheduler({ blockCount, blockSize, tokenBudget, sequenceCountMax, pinnedShareMax: 0.7 });
  }

  apply(event: SchedulerEvent): void {
    for (const effect of this.scheduler.apply(event, this.now)) this.#perform(effect);
    this.scheduler.checkInvariants();
    this.#notePrompting();
  }

  /** Every token of a sequence that is known. */
  tokensOf(id: number): readonly number[] {
    const { promptTokenIds, outputTokenIds = [] } = this.specs.get(id) as SequenceSpec;
    const before = outputTokenIds.length > 0 ? outputTokenIds : Array.from({ length: this.samplesBefore(id) }, () => 1);
    return [...promptTokenIds, ...before, ...(this.device.sampled.get(id) ?? [])];
  }

  /** Where a sequence that has everything before a position goes on. */
  nextPosition(id: number, position: number): number {
    return (this.fetched.get(id) ?? []).reduce((next, span) => (span.begin === next ? span.end : next), position);
  }

  /** Position of a sequence's first slice. */
  firstPosition(id: number): number {
    const cached = this.cached.get(id) ?? 0;
    // What a branch finds follows what it shares.
    return this.parents.has(id) ? this.#firstUncached(id) + cached : Math.max(this.#firstUncached(id), cached);
  }

  #firstUncached(id: number): number {
    const { kind, promptTokenIds, outputTokenIds = [] } = this.specs.get(id) as SequenceSpec;
    if (this.parents.has(id)) return promptTokenIds.length - 1;
    const kept = this.kept.get(id);
    const knownCount = outputTokenIds.length || (this.tokenKnown.has(id) ? 1 : 0);
    if (kept !== undefined) return Math.min(kept, promptTokenIds.length + knownCount - 1);
    return kind === "decode" ? promptTokenIds.length : 0;
  }

  /** Tokens of output that a sequence does not sample itself. */
  samplesBefore(id: number): number {
    const { kind, outputTokenIds = [] } = this.specs.get(id) as SequenceSpec;
    if (outputTokenIds.length > 0) return outputTokenIds.length;
    return kind === "decode" && (!this.kept.has(id) || this.tokenKnown.has(id)) ? 1 : 0;
  }

  /** What one event makes computable comes in order of admission, and branches follow their parents in the order in which those were done. */
  #notePrompting(): void {
    const fresh = [...this.scheduler.sequences()]
      .filter(({ phase, spec }) => phase === "prompting" && !this.promptOrder.includes(spec.sequenceId))
      .map(({ spec }) => spec.sequenceId);
    const place = (id: number) => this.promptOrder.indexOf(this.parents.get(id) ?? id);
    this.promptOrder.push(...fresh.sort((a, b) => place(a) - place(b) || a - b));
  }

  #perform(effect: SchedulerEffect): void {
    const id = effect.sequenceId;
    const spec = this.specs.get(id);
    if (!spec) throw new Error(`effect for unknown sequence ${id}`);
    switch (effect.kind) {
      case "AnnounceAdmission":
        this.admissions.push(id);
        this.cachedAtAdmission.set(id, effect.cachedTokenCount);
        expect(effect.cachedTokenCount).toBeLessThan(this.tokensOf(id).length);
        if (spec.prefixRoot === undefined || spec.computesWholePrompt) expect(effect.cachedTokenCount).toBe(0);
        this.device.expectWritten(id, effect.blockIds, effect.cachedTokenCount);
        reused.atAdmission += effect.cachedTokenCount;
        if (spec.kind === "prefill" || spec.fetches) this.admittedBlocks.set(id, effect.blockIds);
        if (spec.kind === "prefill") this.transfers.set(id, "publishing");
        if (spec.kind === "decode") this.transfers.set(id, "offered");
        break;
      case "OpenFetch":
        expect(effect.blockIds.length).toBe(Math.ceil(spec.promptTokenIds.length / this.blockSize));
        this.transfers.set(id, "open");
        this.fetchBlocks.set(id, effect.blockIds);
        break;
      case "RefuseSequence":
        this.refused.add(id);
        this.live.delete(id);
        break;
      case "DeliverToken": {
        const tokens = this.delivered.get(id) ?? [];
        expect(effect.tokenIndex).toBe(tokens.length + this.samplesBefore(id));
        expect(this.ended.has(id)).toBe(false);
        tokens.push(effect.token.tokenId);
        this.delivered.set(id, tokens);
        if (effect.end) this.ended.set(id, effect.end);
        break;
      }
      case "ForgetSequence":
        expect(this.live.delete(id)).toBe(true);
        expect(this.device.queue.some((plan) => plan.slices.some((slice) => slice.sequenceId === id))).toBe(false);
        expect(this.transfers.get(id) === "open").toBe(false);
        expect(this.awaited.has(id)).toBe(false);
        break;
    }
  }

  plan(): StepPlan | undefined {
    const decodable = [...this.scheduler.sequences()].filter(
      (sequence) => sequence.phase === "decoding" && sequence.samplePlannedCount < sequence.spec.maxTokens,
    );
    const prompting = [...this.scheduler.sequences()].filter(
      ({ phase, awaited }) => phase === "prompting" && awaited === undefined,
    );
    const inFlightBefore = this.scheduler.inFlightCount;
    const plan = this.scheduler.plan();
    this.scheduler.checkInvariants();
    this.#notePrompting();
    if (inFlightBefore === 2) expect(plan).toBeUndefined();
    if (!plan) return undefined;
    for (const { sequenceId, cachedTokenCount } of plan.starts) {
      this.cached.set(sequenceId, cachedTokenCount);
      reused.later += cachedTokenCount - (this.cachedAtAdmission.get(sequenceId) ?? 0);
    }
    const tokens = plan.slices.reduce((sum, slice) => sum + slice.tokenCount, 0);
    expect(tokens).toBeLessThanOrEqual(this.scheduler.options.tokenBudget);
    expect(plan.promptTokenCount + plan.decodeTokenCount).toBe(tokens);
    // No decode is starved, and the oldest prompt moves.
    const planned = new Set(plan.slices.map((slice) => slice.sequenceId));
    expect(planned.size).toBe(plan.slices.length);
    for (const sequence of decodable) expect(planned.has(sequence.spec.sequenceId)).toBe(true);
    const promptingIds = new Set<number>(prompting.map((sequence) => sequence.spec.sequenceId));
    const oldest = this.promptOrder.find((id) => promptingIds.has(id));
    if (oldest !== undefined) expect(planned.has(oldest as SequenceId)).toBe(true);
    // Chunks of a prompt neither overlap nor leave a gap.
    for (const slice of plan.slices) {
      const spec = this.specs.get(slice.sequenceId);
      const outputTokenCount = spec?.outputTokenIds?.length || (this.tokenKnown.has(slice.sequenceId) ? 1 : 0);
      const inputTokenCount = (spec?.promptTokenIds.length ?? 0) + outputTokenCount;
      if (slice.startPosition >= inputTokenCount) continue;
      const before = this.device.chunkEnds.get(slice.sequenceId) ?? this.firstPosition(slice.sequenceId);
      expect(slice.startPosition).toBe(this.nextPosition(slice.sequenceId, before));
      const { begin = Number.POSITIVE_INFINITY } = this.awaited.get(slice.sequenceId) ?? {};
      expect(slice.startPosition + slice.tokenCount).toBeLessThanOrEqual(begin);
      this.device.chunkEnds.set(slice.sequenceId, slice.startPosition + slice.tokenCount);
    }
    this.device.queue.push(plan);
    return plan;
  }

  arrive(
    kind: SequenceKind,
    promptTokenCount: number,
    wantedTokens: number,
    waitMs: number,
    wantedBranches: number,
    known: number,
    text: number,
  ): void {
    const maxTokens = clipMaxTokens(promptTokenCount, wantedTokens, CONTEXT_LENGTH);
    const sequenceId = (this.specs.size + 1) as SequenceId;
    // Two texts that every other prompt follows for a while, in two tenants, and now and then none.
    const commonCount = text % 3 === 0 ? promptTokenCount : (text * 7) % 40;
    const promptTokenIds = Array.from({ length: promptTokenCount }, (_, index) =>
      index < commonCount ? 100 + (text % 2) : 200 + sequenceId,
    );
    const tenant = text % 5 === 4 ? 1 : 0;
    const scope = { tenantScope: new Uint8Array(16).fill(tenant), fingerprint: FINGERPRINT };
    const reuse = {
      ...(text % 7 === 6 ? {} : { prefixRoot: prefixRoot(scope, this.blockSize) }),
      computesWholePrompt: text % 11 === 10,
      fetches: kind === "local" && text % 2 === 1,
    };
    const branchCount = kind === "prefill" ? 0 : wantedBranches;
    const outputOf = (wanted: number) => Array.from({ length: Math.min(wanted, maxTokens - 1) }, () => 1);
    const branches = Array.from({ length: branchCount }, (_, index) => ({
      sequenceId: (sequenceId + 1 + index) as SequenceId,
      outputTokenIds: outputOf((known * (index + 1)) % 7),
    }));
    const common = { promptTokenIds, maxTokens, stopTokenIds: [STOP_TOKEN], ...reuse };
    const outputTokenIds = kind === "prefill" ? [] : outputOf(known);
    const spec: SequenceSpec = { sequenceId, kind, ...common, outputTokenIds, branches };
    if (!this.scheduler.fits(spec)) return;
    this.specs.set(sequenceId, spec);
    for (const id of [sequenceId, ...branches.map((branch) => branch.sequenceId)]) this.tenants.set(id, tenant);
    for (const { sequenceId: id, outputTokenIds } of branches) {
      this.specs.set(id, { sequenceId: id, kind: "local", ...common, outputTokenIds });
      this.parents.set(id, sequenceId);
      this.live.add(id);
    }
    this.arrivals.push(sequenceId);
    this.live.add(sequenceId);
    this.apply({ kind: "SequenceArrived", spec, waitUntil: (this.now + nanosFromMs(waitMs)) as Instant });
  }

  /** No more KV comes for some transfer of decode kind: what is there is kept. */
  loseTransfer(pick: number): void {
    const entries = [...this.transfers].filter(
      ([id, state]) => this.live.has(id) && (state === "offered" || (state === "open" && this.isReceiver(id))),
    );
    const entry = entries[pick % Math.max(entries.length, 1)];
    if (!entry) return;
    const [id, state] = entry;
    const promptTokenCount = this.specs.get(id)?.promptTokenIds.length ?? 0;
    const cached = this.cachedAtAdmission.get(id) ?? 0;
    const verifiedTokenCount = state === "open" ? Math.max(cached, pick % (promptTokenCount + 1)) : cached;
    this.device.write(id, this.fetchBlocks.get(id) ?? [], cached, verifiedTokenCount);
    this.kept.set(id, verifiedTokenCount);
    this.transfers.set(id, "none");
    const isTokenKnown = pick % 3 === 0 && (this.specs.get(id)?.maxTokens ?? 0) > 1;
    if (isTokenKnown) this.tokenKnown.add(id);
    const firstTokenId = isTokenKnown ? 1 : undefined;
    this.apply({ kind: "KvLost", sequenceId: id as SequenceId, verifiedTokenCount, firstTokenId });
    if (state === "open") this.apply({ kind: "TransferClosed", sequenceId: id as SequenceId });
  }

  isReceiver(id: number): boolean {
    return this.specs.get(id)?.kind === "decode";
  }

  /** One step of the outside for some transfer: publish, ticket, arrival, close. */
  moveTransfer(pick: number): boolean {
    const entries = [...this.transfers].filter(([id, state]) => this.live.has(id) && state !== "none");
    const entry = entries[pick % Math.max(entries.length, 1)];
    if (!entry) return false;
    const sequenceId = entry[0] as SequenceId;
    const kind = this.specs.get(sequenceId)?.kind;
    if (entry[1] === "offered") {
      this.apply({ kind: "KvOffered", sequenceId });
      if (this.transfers.get(sequenceId) === "offered") this.transfers.set(sequenceId, "none");
    } else if (entry[1] === "publishing") {
      this.transfers.set(sequenceId, "open");
      this.apply({ kind: "ExportOpened", sequenceId });
    } else if (kind === "decode") {
      const promptTokenCount = this.specs.get(sequenceId)?.promptTokenIds.length ?? 0;
      const cached = this.cachedAtAdmission.get(sequenceId) ?? 0;
      this.device.expectWritten(sequenceId, this.fetchBlocks.get(sequenceId) ?? [], cached);
      this.device.write(sequenceId, this.fetchBlocks.get(sequenceId) ?? [], cached, promptTokenCount);
      this.apply({ kind: "KvArrived", sequenceId, firstTokenId: 1 });
      this.transfers.set(sequenceId, "none");
      this.apply({ kind: "TransferClosed", sequenceId });
    } else if (this.delivered.has(sequenceId) || this.closed.has(sequenceId)) {
      this.transfers.set(sequenceId, "none");
      this.apply({ kind: "SequenceClosed", sequenceId });
      this.apply({ kind: "TransferClosed", sequenceId });
    } else return false;
    return true;
  }

  /** A fetch of some sequence's prompt begins, leaves some of its front to be computed, or ends with what it brought. */
  fetch(pick: number): boolean {
    const running = [...this.awaited][pick % Math.max(this.awaited.size, 1)];
    if (running === undefined || pick % 4 === 0) return this.#beginFetch(pick);
    const [id, span] = running;
    const sequenceId = id as SequenceId;
    const blockIds = this.admittedBlocks.get(id) ?? [];
    if (pick % 4 === 1 && span.end - span.begin > 2 * this.blockSize) {
      const [second, third] = [span.begin + this.blockSize, span.begin + 2 * this.blockSize];
      const hasArrived = pick % 8 === 1;
      const rest = { begin: hasArrived ? third : second, end: span.end };
      if (hasArrived) this.device.write(id, blockIds, second, third);
      this.awaited.set(id, rest);
      const before = this.fetched.get(id) ?? [];
      const fetched = hasArrived ? [...before, { begin: second, end: third }] : before;
      this.fetched.set(id, fetched);
      // All that has arrived, but for what is planned already.
      const { plannedCount = 0 } = this.scheduler.progressOf(sequenceId) ?? {};
      const arrived = fetched.filter(({ begin }) => begin >= plannedCount);
      this.apply({ kind: "KvAwaited", sequenceId, span: rest, arrived });
      return true;
    }
    const spans: TokenSpan[] = [];
    for (let begin = span.begin; begin < span.end; begin += this.blockSize) {
      const isVerified = (pick * 31 + begin * 7) % 5 < 3;
      const [last] = spans.slice(-1);
      const end = begin + this.blockSize;
      if (isVerified) {
        if (last?.end === begin) spans.splice(-1, 1, { begin: last.begin, end });
        else spans.push({ begin, end });
        this.device.write(id, blockIds, begin, end);
        continue;
      }
      // It wrote, and it was not what should be there.
      for (let slot = 0; slot < this.blockSize; slot++) {
        this.device.content.set(`${blockIds[begin / this.blockSize]}:${slot}`, "not verified");
      }
    }
    this.awaited.delete(id);
    this.fetched.set(id, [...(this.fetched.get(id) ?? []), ...spans]);
    reused.fetched += spans.length;
    this.apply({ kind: "KvFetched", sequenceId, spans });
    return true;
  }

  #beginFetch(pick: number): boolean {
    const able = [...this.scheduler.sequences()].filter(
      ({ phase, spec }) =>
        (phase === "reserved" || phase === "prompting") &&
        (spec.kind === "prefill" || spec.fetches === true) &&
        this.admittedBlocks.has(spec.sequenceId) &&
        !this.fetched.has(spec.sequenceId) &&
        !this.awaited.has(spec.sequenceId),
    );
    const sequence = able[pick % Math.max(able.length, 1)];
    if (sequence === undefined) return false;
    const { sequenceId, promptTokenIds } = sequence.spec;
    const span = {
      begin: Math.ceil(sequence.inputPlannedCount / this.blockSize) * this.blockSize,
      end: Math.floor((promptTokenIds.length - 1) / this.blockSize) * this.blockSize,
    };
    if (span.begin >= span.end) return false;
    this.awaited.set(sequenceId, span);
    this.apply({ kind: "KvAwaited", sequenceId, span });
    return true;
  }

  close(pick: number): void {
    const ids = [...this.live];
    const sequenceId = ids[pick % Math.max(ids.length, 1)] as SequenceId | undefined;
    if (sequenceId === undefined) return;
    this.closed.add(sequenceId);
    this.apply({ kind: "SequenceClosed", sequenceId });
    const state = this.transfers.get(sequenceId) ?? "none";
    this.transfers.set(sequenceId, "none");
    if (state === "open" || state === "publishing") this.apply({ kind: "TransferClosed", sequenceId });
  }

  answer(random: () => number): boolean {
    const answered = this.device.answer(random);
    if (answered) this.apply({ kind: "StepCompleted", ...answered });
    return answered !== undefined;
  }

  /** Lets everything run, in the order that `random` picks, until nothing moves. */
  settle(random: () => number): void {
    for (let round = 0; round < 20_000; round++) {
      const moves = [
        () => this.plan() !== undefined,
        () => this.answer(random),
        () => this.moveTransfer(Math.floor(random() * 97)),
        () => this.awaited.size > 0 && this.fetch(4 * Math.floor(random() * 97) + 1 + Math.floor(random() * 3)),
      ];
      const first = Math.floor(random() * 4);
      const moved = [0, 1, 2, 3].some((offset) => moves[(first + offset) % 4]?.() ?? false);
      if (!moved && ![...this.live].some((id) => this.moveTransfer(id))) return;
    }
    throw new Error("never settles");
  }
}
