import { assert } from "../assert.ts";
import { type BlockId, BlockPool } from "../block/block-pool.ts";
import { unreachable } from "../kvasir-error.ts";
import type { Instant } from "../time.ts";
import { branchWorstCaseOf, sharedBlockCount, worstCaseOf } from "./capacity.ts";
import { checkSequences } from "./check-scheduler.ts";
import type {
  PlannedCopy,
  PlannedSlice,
  PlannedStart,
  SchedulerEffect,
  SchedulerEvent,
  SequenceId,
  SequenceSpec,
  SliceResult,
  StepPlan,
} from "./events.ts";
import { loadOf, type SchedulerLoad } from "./load.ts";
import { PrefixReuse } from "./prefix-reuse.ts";
import {
  awaitKv,
  endOf,
  groupOf,
  isCoherent,
  keepFetched,
  keepReceived,
  newSequence,
  nextChunk,
  planOrder,
  progressOf,
  promptChain,
  type Sequence,
} from "./sequence.ts";

/** A sequence in a step, and how much of its KV is written when that is answered. */
interface Planned {
  readonly sequence: Sequence;
  readonly tokenEnd: number;
}

/** Steps that may be unanswered: one runs while the next waits on the device, so the device never waits for the scheduler. */
export const STEPS_IN_FLIGHT_MAX = 2;

export interface StepSchedulerOptions {
  readonly blockCount: number;
  /** Tokens per block. */
  readonly blockSize: number;
  /** Most tokens in one step. Larger: prompts finish sooner, but each step, and so the gap between tokens of others, grows. */
  readonly tokenBudget: number;
  /** Most sequences in the batch or on their way into it; cut to `tokenBudget`. Larger: more throughput, longer steps. */
  readonly sequenceCountMax: number;
  /**
   * Share of the pool that computed, not yet pulled prompts may hold before no further prefill sequence is admitted. Larger: rides
   * out slower receivers; smaller: leaves more room for prompts that are being computed.
   */
  readonly pinnedShareMax: number;
  /** Steps that may be unanswered. 2, the default: the device never waits for the scheduler. 1: a prompt that comes waits for the running step only. */
  readonly stepsInFlightMax?: number;
}

/**
 * Decides what each step computes: continuous batching with stall-free chunked prefill. Within the token budget come first one token
 * of *every* decoding sequence, then partial prompts, then new ones, in order of admission (Agrawal et al., Sarathi-Serve,
 * OSDI 2024, algorithm 3). We differ in admission: instead of preempting when blocks run out, the worst case is reserved up front.
 *
 * Admitted work always finishes. Admission reserves the most blocks a sequence can come to hold, and `BlockPool.take` cannot fail
 * within a reservation, so no admitted sequence ever waits for a block, hence for no other sequence. At most `tokenBudget` sequences
 * are in the batch: all decodes fit every step, and while a prompt is unfinished at least one token of budget is left for prompts, of
 * which the oldest gets it. So each step that a device answers moves every decode by a token and the oldest prompt by at least one;
 * both are finite. What waits for others (a ticket, KV, a pull) is under a lease of its owner, whose end is a `SequenceClosed`.
 * Blocks therefore return, and the head of the queue, which is never overtaken, is admitted in its turn or refused at its `waitUntil`. (One
 * that could never fit is refused at once by the caller: see `fits`.)
 *
 * Up to two steps are in flight. A sequence is planned for step N+1 before the result of N: its token stays on the device. That it
 * ended is learnt from a result; what was planned beyond comes back `skipped`. `maxTokens` is known, so nothing is planned beyond it.
 *
 * KV outlives its sequence: full blocks whose KV is written are found by the hash of all tokens before them (`PrefixReuse`), whoever asks for the
 * same prompt under the same root. A promise counts blocks that nobody holds as free, whatever they hold.
 *
 * A block returns to the pool only when the sequence has ended, every step in flight that names it is answered, and no transfer
 * touches it (`TransferClosed`).
 */
export class StepScheduler {
  readonly options: StepSchedulerOptions;
  readonly pool: BlockPool;
  readonly #reuse: PrefixReuse;
  readonly #sequences = new Map<number, Sequence>();
  /** In order of arrival; ended ones are removed at once. */
  #waiting: Sequence[] = [];
  /** In order of admission, respectively of joining: sets iterate in order of insertion. */
  readonly #prompting = new Set<Sequence>();
  readonly #decoding = new Set<Sequence>();
  /** Sequences that count against `sequenceCountMax`: reserved, receiving, prompting, decoding. */
  #activeCount = 0;
  #pinnedBlockCount = 0;
  #dropped: SequenceId[] = [];
  #inFlight: { readonly stepId: number; readonly planned: readonly Planned[] }[] = [];
  #lastStepId = 0;

  constructor(options: StepSchedulerOptions) {
    assert(
      options.tokenBudget >= 1 && options.sequenceCountMax >= 1,
      "token budget and sequence count must be positive",
    );
    this.options = { ...options, sequenceCountMax: Math.min(options.sequenceCountMax, options.tokenBudget) };
    this.pool = new BlockPool(options.blockCount);
    this.#reuse = new PrefixReuse(this.pool, options.blockSize);
  }

  /** Whether the sequence could be admitted by an empty scheduler. Ask before `SequenceArrived`. */
  fits(spec: SequenceSpec): boolean {
    const branchCount = spec.branches?.length ?? 0;
    const blockCount =
      worstCaseOf(spec, this.options.blockSize) + branchCount * branchWorstCaseOf(spec, this.options.blockSize);
    return blockCount <= this.options.blockCount && 1 + branchCount <= this.options.sequenceCountMax;
  }

  apply(event: SchedulerEvent, now: Instant): readonly SchedulerEffect[] {
    const effects: SchedulerEffect[] = [];
    const sequence = "sequenceId" in event ? this.#sequences.get(event.sequenceId) : undefined;
    switch (event.kind) {
      case "SequenceArrived":
        this.#arrive(event.spec, event.waitUntil);
        break;
      case "SequenceClosed":
        if (sequence && sequence.phase !== "ended") this.#end(sequence, effects);
        break;
      case "ExportOpened":
        if (sequence?.phase === "reserved" && sequence.spec.kind === "prefill") this.#startPrompt(sequence);
        break;
      case "KvOffered":
        if (sequence?.phase !== "reserved" || sequence.spec.kind !== "decode") break;
        sequence.phase = "receiving";
        sequence.transferOpen = true;
        this.#cover(sequence, sequence.spec.promptTokenIds.length);
        effects.push({ kind: "OpenFetch", sequenceId: event.sequenceId, blockIds: sequence.blockIds.slice() });
        break;
      case "KvArrived":
        if (sequence?.phase !== "receiving") break;
        sequence.isApproximate = event.isApproximate ?? false;
        this.#receive(sequence, event.firstTokenId, effects);
        break;
      case "KvLost":
        if (sequence?.spec.kind !== "decode") break;
        if (sequence.phase === "receiving" || sequence.phase === "reserved") {
          sequence.isApproximate = event.isApproximate ?? false;
          keepReceived(sequence, event.verifiedTokenCount, event.firstTokenId);
          this.#reuse.keep(sequence, sequence.inputPlannedCount);
          this.#startPrompt(sequence);
        }
        break;
      case "KvAwaited":
        if (sequence !== undefined) awaitKv(sequence, event, this.options.blockSize);
        break;
      case "KvFetched":
        if (sequence?.awaited === undefined) break;
        keepFetched(sequence, event.spans, event.isApproximate ?? false);
        this.#freeIfQuiet(sequence, effects);
        break;
      case "TransferClosed":
        if (sequence === undefined) break;
        sequence.transferOpen = false;
        this.#freeIfQuiet(sequence, effects);
        break;
      case "StepCompleted":
        this.#completeStep(event.stepId, event.results, effects);
        break;
      case "TimePassed":
        break;
      default:
        return unreachable(event);
    }
    this.#refuseOverdue(now, effects);
    this.#admit(effects);
    return effects;
  }

  /** The next step, or undefined when two are in flight or there is nothing to do. Each plan must be sent, in this order. */
  plan(): StepPlan | undefined {
    if (this.#inFlight.length >= (this.options.stepsInFlightMax ?? STEPS_IN_FLIGHT_MAX)) return undefined;
    const copies: PlannedCopy[] = [];
    const starts: PlannedStart[] = [];
    const slices: PlannedSlice[] = [];
    const planned: Planned[] = [];
    const add = (sequence: Sequence, slice: PlannedSlice): void => {
      slices.push(slice);
      planned.push({ sequence, tokenEnd: slice.startPosition + slice.tokenCount });
    };
    for (const sequence of this.#decoding) {
      if (sequence.samplePlannedCount < sequence.spec.maxTokens) add(sequence, this.#planDecode(sequence, starts));
    }
    const decodeTokenCount = slices.length;
    let budget = this.options.tokenBudget - decodeTokenCount;
    // Of what is there now: a branch starts in a later step than the prompt that it copies from.
    for (const sequence of this.#prompting.size > 0 ? planOrder(this.#prompting) : []) {
      if (budget <= 0) break;
      const slice = this.#planChunk(sequence, budget, starts, copies);
      if (slice === undefined) continue;
      budget -= slice.tokenCount;
      add(sequence, slice);
    }
    // Drops alone are worth a step only when no other step will carry them soon.
    if (slices.length === 0 && (this.#dropped.length === 0 || this.#inFlight.length > 0)) return undefined;

    const droppedSequenceIds = this.#dropped;
    this.#dropped = [];
    for (const { sequence } of planned) sequence.inFlightCount++;
    const stepId = ++this.#lastStepId;
    this.#inFlight.push({ stepId, planned });
    const promptTokenCount = this.options.tokenBudget - decodeTokenCount - budget;
    return { stepId, copies, starts, slices, droppedSequenceIds, promptTokenCount, decodeTokenCount };
  }

  get inFlightCount(): number {
    return this.#inFlight.length;
  }

  /** When `TimePassed` will next refuse somebody. */
  nextRefusal(): Instant | undefined {
    if (this.#waiting.length === 0) return undefined;
    return Math.min(...this.#waiting.map(({ waitUntil }) => waitUntil)) as Instant;
  }

  /** How far a sequence's input is; undefined once it has ended. */
  progressOf(sequenceId: SequenceId) {
    return progressOf(this.#sequences.get(sequenceId));
  }

  get waitingCount(): number {
    return this.#waiting.length;
  }

  /** Every sequence that is not forgotten, with the blocks it holds; for audits and for failing them all. */
  *sequences(): IterableIterator<Readonly<Sequence>> {
    yield* this.#sequences.values();
  }

  load(): SchedulerLoad {
    return loadOf(this.#sequences.values(), this.pool.availableCount);
  }

  checkInvariants(): void {
    const activeMax = this.options.sequenceCountMax;
    const counted = { active: this.#activeCount, pinned: this.#pinnedBlockCount, activeMax };
    checkSequences(this.#sequences.values(), this.pool, counted);
    assert(this.inFlightCount <= STEPS_IN_FLIGHT_MAX, `${this.inFlightCount} steps are in flight`);
  }

  #arrive(spec: SequenceSpec, waitUntil: Instant): void {
    assert(!this.#sequences.has(spec.sequenceId), `sequence ${spec.sequenceId} arrives twice`);
    assert(spec.promptTokenIds.length >= 1 && spec.maxTokens >= 1, `sequence ${spec.sequenceId} is empty`);
    assert(this.fits(spec), `sequence ${spec.sequenceId} needs more blocks than there are`);
    assert(isCoherent(spec), `sequence ${spec.sequenceId} has output beyond max_tokens, or hands over with some`);
    const chain = promptChain(spec, this.options.blockSize);
    const sequence = newSequence(spec, waitUntil, worstCaseOf(spec, this.options.blockSize), chain);
    this.#sequences.set(spec.sequenceId, sequence);
    this.#waiting.push(sequence);
    const { branches = [], ...common } = spec;
    for (const { sequenceId, outputTokenIds = [] } of branches) {
      assert(!this.#sequences.has(sequenceId), `sequence ${sequenceId} arrives twice`);
      const own: SequenceSpec = { ...common, sequenceId, kind: "local", outputTokenIds, fetches: false };
      const branch = newSequence(own, waitUntil, branchWorstCaseOf(spec, this.options.blockSize), chain);
      branch.inputPlannedCount = spec.promptTokenIds.length - 1;
      this.#sequences.set(sequenceId, branch);
      sequence.branches.push(branch);
    }
  }

  #refuseOverdue(now: Instant, effects: SchedulerEffect[]): void {
    const overdue = this.#waiting.filter((sequence) => sequence.waitUntil <= now);
    if (overdue.length === 0) return;
    this.#waiting = this.#waiting.filter((sequence) => sequence.waitUntil > now);
    for (const { spec } of overdue.flatMap(groupOf)) {
      this.#sequences.delete(spec.sequenceId);
      effects.push({ kind: "RefuseSequence", sequenceId: spec.sequenceId });
    }
  }

  /** First come, first admitted: nobody overtakes, so a large request cannot be starved by small ones. */
  #admit(effects: SchedulerEffect[]): void {
    for (let head = this.#waiting[0]; head !== undefined; head = this.#waiting[0]) {
      const group = groupOf(head);
      if (this.#activeCount + group.length > this.options.sequenceCountMax) return;
      const { sequenceId, kind, promptTokenIds } = head.spec;
      const pinnedBlockCountMax = this.options.pinnedShareMax * this.options.blockCount;
      if (kind === "prefill" && this.#pinnedBlockCount > pinnedBlockCountMax) return;
      const blockCount = group.reduce((count, sequence) => count + sequence.worstCaseBlockCount, 0);
      const found = this.#reuse.find(head);
      if (blockCount - this.pool.heldCount(found) > this.pool.availableCount) return;
      this.#waiting.shift();
      this.#activeCount += group.length;
      for (const sequence of group) {
        const reused = sequence === head ? found : [];
        this.pool.reserve(sequence.spec.sequenceId, sequence.worstCaseBlockCount, reused);
        sequence.phase = "reserved";
      }
      this.#reuse.begin(head, found);
      if (kind === "local") this.#startPrompt(head);
      // Its blocks are named in the export or the fetch, which is opened before anything is computed.
      if (kind === "prefill" || head.spec.fetches) this.#cover(head, promptTokenIds.length);
      if (kind === "prefill") head.transferOpen = true;
      const { blockIds, cachedTokenCount } = head;
      effects.push({ kind: "AnnounceAdmission", sequenceId, blockIds: blockIds.slice(), cachedTokenCount });
    }
  }

  #startPrompt(sequence: Sequence): void {
    sequence.phase = "prompting";
    this.#prompting.add(sequence);
  }

  #receive(sequence: Sequence, firstTokenId: number, effects: SchedulerEffect[]): void {
    const { promptTokenIds, maxTokens } = sequence.spec;
    sequence.inputPlannedCount = promptTokenIds.length;
    this.#reuse.keep(sequence, promptTokenIds.length);
    const isComplete = sequence.inputTokenIds.length === promptTokenIds.length;
    if (!isComplete) this.#startPrompt(sequence);
    this.#branchOff(sequence);
    if (!isComplete) return;
    sequence.phase = "decoding";
    sequence.firstTokenId = firstTokenId;
    sequence.chain?.extend([firstTokenId]);
    sequence.samplePlannedCount = 1;
    sequence.sampleDoneCount = 1;
    if (maxTokens === 1) this.#end(sequence, effects);
    else this.#decoding.add(sequence);
  }

  /** The prompt's KV is in the pool, or will be before any later step: its branches go on from the prompt's last token. */
  #branchOff(parent: Sequence): void {
    const { spec, blockIds } = parent;
    const [, ...branches] = groupOf(parent);
    parent.branches = [];
    const sharedCount = sharedBlockCount(spec.promptTokenIds.length, this.options.blockSize);
    for (const branch of branches) {
      const shared = blockIds.slice(0, sharedCount);
      this.pool.share(shared);
      branch.blockIds = shared;
      branch.isApproximate = parent.isApproximate;
      const source = blockIds[sharedCount];
      if (source !== undefined && (spec.promptTokenIds.length - 1) % this.options.blockSize > 0) {
        this.pool.share([source]);
        branch.copySources.push(source);
      }
      this.#startPrompt(branch);
    }
  }

  #planDecode(sequence: Sequence, starts: PlannedStart[]): PlannedSlice {
    const { sequenceId, promptTokenIds } = sequence.spec;
    // Token i is computed at position prompt + i to sample token i + 1.
    const startPosition = promptTokenIds.length + sequence.samplePlannedCount - 1;
    const appendedBlockIds = this.#cover(sequence, startPosition + 1);
    let tokenIds: number[] = [];
    if (!sequence.started) {
      assert(sequence.firstTokenId !== undefined, `sequence ${sequenceId} joins without a token`);
      tokenIds = [sequence.firstTokenId];
      this.#start(sequence, appendedBlockIds.length, starts);
    }
    sequence.samplePlannedCount++;
    return { sequenceId, startPosition, tokenCount: 1, tokenIds, appendedBlockIds, sample: true };
  }

  /** Undefined while everything that is left to compute stands behind KV that may still arrive. */
  #planChunk(
    sequence: Sequence,
    budget: number,
    starts: PlannedStart[],
    copies: PlannedCopy[],
  ): PlannedSlice | undefined {
    const { inputTokenIds, copySources } = sequence;
    const { sequenceId, kind } = sequence.spec;
    const [parentBlockId] = copySources;
    if (!sequence.started) this.#reuse.findMore(sequence, copies);
    const { begin: startPosition, end } = nextChunk(sequence, budget);
    if (end === startPosition) return undefined;
    // The whole input at once, so that it lies in one run where there is one.
    const appendedBlockIds = this.#cover(sequence, inputTokenIds.length);
    if (!sequence.started) this.#start(sequence, appendedBlockIds.length, starts);
    const [targetBlockId] = appendedBlockIds;
    // A branch begins within a block of its parent.
    if (parentBlockId !== undefined && targetBlockId !== undefined) {
      const inBlockCount = startPosition % this.options.blockSize;
      copies.push({ sourceBlockId: parentBlockId, targetBlockId, tokenCount: inBlockCount });
    }
    const sample = end === inputTokenIds.length;
    sequence.inputPlannedCount = end;
    if (sample) {
      sequence.samplePlannedCount++;
      this.#prompting.delete(sequence);
      if (kind !== "prefill") {
        sequence.phase = "decoding";
        this.#decoding.add(sequence);
        this.#branchOff(sequence);
      } else {
        sequence.phase = "pinned";
        this.#activeCount--;
        this.#pinnedBlockCount += sequence.blockIds.length;
      }
    }
    const tokenIds = inputTokenIds.slice(startPosition, end);
    return { sequenceId, startPosition, tokenCount: end - startPosition, tokenIds, appendedBlockIds, sample };
  }

  /** Names the sequence to the device with the blocks it held before this step's own. */
  #start(sequence: Sequence, appendedCount: number, starts: PlannedStart[]): void {
    const { cachedTokenCount, spec } = sequence;
    const { sequenceId, promptTokenIds } = spec;
    const blockIds = sequence.blockIds.slice(0, sequence.blockIds.length - appendedCount);
    starts.push({ sequenceId, promptTokenCount: promptTokenIds.length, blockIds, cachedTokenCount });
    sequence.started = true;
  }

  #cover(sequence: Sequence, tokenCount: number): readonly BlockId[] {
    const missing = Math.ceil(tokenCount / this.options.blockSize) - sequence.blockIds.length;
    if (missing <= 0) return [];
    const blockIds = this.pool.take(sequence.spec.sequenceId, missing);
    for (const blockId of blockIds) sequence.blockIds.push(blockId);
    return blockIds;
  }

  #completeStep(stepId: number, results: readonly SliceResult[], effects: SchedulerEffect[]): void {
    const step = this.#inFlight.shift();
    assert(step !== undefined && step.stepId === stepId, `step ${stepId} is answered, ${step?.stepId} was next`);
    assert(
      results.length === step.planned.length,
      `step ${stepId} has ${results.length} results for ${step.planned.length} slices`,
    );
    for (let index = 0; index < results.length; index++) {
      const { sequence, tokenEnd } = step.planned[index] as Planned;
      const result = results[index];
      assert(
        result?.sequenceId === sequence.spec.sequenceId,
        `step ${stepId} answers slice ${index} for another sequence`,
      );
      sequence.inFlightCount--;
      this.#freeCopySources(sequence);
      if (result.outcome !== "skipped") this.#reuse.keep(sequence, tokenEnd);
      if (sequence.phase !== "ended") this.#applyResult(sequence, result, effects);
      this.#freeIfQuiet(sequence, effects);
    }
  }

  #applyResult(sequence: Sequence, result: SliceResult, effects: SchedulerEffect[]): void {
    if (result.outcome === "computed") return;
    const { sequenceId, kind } = sequence.spec;
    const { token } = result;
    assert(
      result.outcome !== "skipped" && token !== undefined,
      `sequence ${sequenceId} is ${result.outcome} without a token`,
    );
    const tokenIndex = sequence.sampleDoneCount++;
    sequence.chain?.extend([token.tokenId]);
    const end = endOf(sequence.spec, result.outcome, token.tokenId, tokenIndex);
    effects.push({ kind: "DeliverToken", sequenceId, token, tokenIndex, end });
    if (kind === "prefill") this.#drop(sequence);
    else if (end !== undefined) this.#end(sequence, effects);
  }

  /** Tells the device, with the next step, to forget the sequence; its export stays readable. */
  #drop(sequence: Sequence): void {
    if (!sequence.started) return;
    sequence.started = false;
    this.#dropped.push(sequence.spec.sequenceId);
  }

  #end(sequence: Sequence, effects: SchedulerEffect[]): void {
    if (sequence.phase === "waiting") this.#waiting = this.#waiting.filter((waiting) => waiting !== sequence);
    else if (sequence.phase === "pinned") this.#pinnedBlockCount -= sequence.blockIds.length;
    else this.#activeCount--;
    this.#prompting.delete(sequence);
    this.#decoding.delete(sequence);
    sequence.phase = "ended";
    this.pool.cancelReservation(sequence.spec.sequenceId);
    this.#drop(sequence);
    // Without the prompt there is nothing to go on from.
    const [, ...orphans] = groupOf(sequence);
    sequence.branches = [];
    for (const branch of orphans) this.#end(branch, effects);
    this.#freeIfQuiet(sequence, effects);
  }

  /** The step that copied from it is answered, or will never be. */
  #freeCopySources(sequence: Sequence): void {
    if (sequence.copySources.length === 0) return;
    this.pool.free(sequence.copySources);
    sequence.copySources = [];
  }

  #freeIfQuiet(sequence: Sequence, effects: SchedulerEffect[]): void {
    if (sequence.phase !== "ended" || sequence.inFlightCount > 0 || sequence.transferOpen || sequence.awaited) return;
    const { sequenceId } = sequence.spec;
    if (!this.#sequences.delete(sequenceId)) return;
    this.#freeCopySources(sequence);
    this.pool.free(sequence.blockIds);
    sequence.blockIds = [];
    effects.push(...this.#reuse.used(sequence), { kind: "ForgetSequence", sequenceId });
  }
}
