import { assert } from "../assert.ts";
import { type BlockId, BlockPool } from "../block/block-pool.ts";
import { unreachable } from "../kvasir-error.ts";
import type { Instant } from "../time.ts";
import { sharedBlockCount, worstCaseBlockCount } from "./capacity.ts";
import type {
  PlannedCopy,
  PlannedSlice,
  PlannedStart,
  SchedulerEffect,
  SchedulerEvent,
  SequenceEnd,
  SequenceId,
  SequenceSpec,
  SliceResult,
  StepPlan,
} from "./events.ts";
import { loadOf, type SchedulerLoad } from "./load.ts";
import { groupOf, isCoherent, keepReceived, newSequence, type Sequence } from "./sequence.ts";

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
 * Blocks therefore return, and the head of the queue, which is never overtaken, is admitted in its turn or refused at its
 * `waitUntil`. (One waiting sequence that could never fit is refused at once by the caller: see `fits`.)
 *
 * Up to two steps are in flight. A sequence is planned for step N+1 before the result of N: its token stays on the device. That it
 * ended is learnt from a result; what was planned beyond comes back `skipped`. `maxTokens` is known, so nothing is planned beyond it.
 *
 * A block returns to the pool only when the sequence has ended, every step in flight that names it is answered, and no transfer
 * touches it (`TransferClosed`).
 */
export class StepScheduler {
  readonly options: StepSchedulerOptions;
  readonly pool: BlockPool;
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
  #inFlight: { readonly stepId: number; readonly sequences: readonly Sequence[] }[] = [];
  #lastStepId = 0;

  constructor(options: StepSchedulerOptions) {
    assert(
      options.tokenBudget >= 1 && options.sequenceCountMax >= 1,
      "token budget and sequence count must be positive",
    );
    this.options = { ...options, sequenceCountMax: Math.min(options.sequenceCountMax, options.tokenBudget) };
    this.pool = new BlockPool(options.blockCount);
  }

  /** Whether the sequence could be admitted by an empty scheduler. Ask before `SequenceArrived`. */
  fits(spec: SequenceSpec): boolean {
    const branchCount = spec.branches?.length ?? 0;
    const blockCount = this.#worstCase(spec) + branchCount * this.#branchWorstCase(spec);
    return blockCount <= this.options.blockCount && 1 + branchCount <= this.options.sequenceCountMax;
  }

  apply(event: SchedulerEvent, now: Instant): readonly SchedulerEffect[] {
    const effects: SchedulerEffect[] = [];
    switch (event.kind) {
      case "SequenceArrived":
        this.#arrive(event.spec, event.waitUntil);
        break;
      case "SequenceClosed": {
        const sequence = this.#sequences.get(event.sequenceId);
        if (sequence && sequence.phase !== "ended") this.#end(sequence, effects);
        break;
      }
      case "ExportOpened": {
        const sequence = this.#sequences.get(event.sequenceId);
        if (sequence?.phase === "reserved" && sequence.spec.kind === "prefill") this.#startPrompt(sequence);
        break;
      }
      case "KvOffered": {
        const sequence = this.#sequences.get(event.sequenceId);
        if (sequence?.phase !== "reserved" || sequence.spec.kind !== "decode") break;
        sequence.phase = "receiving";
        sequence.transferOpen = true;
        this.#take(sequence, Math.ceil(sequence.spec.promptTokenIds.length / this.options.blockSize));
        effects.push({ kind: "OpenFetch", sequenceId: event.sequenceId, blockIds: sequence.blockIds.slice() });
        break;
      }
      case "KvArrived": {
        const sequence = this.#sequences.get(event.sequenceId);
        if (sequence?.phase !== "receiving") break;
        this.#receive(sequence, event.firstTokenId, effects);
        break;
      }
      case "KvLost": {
        const sequence = this.#sequences.get(event.sequenceId);
        if (sequence?.spec.kind !== "decode") break;
        if (sequence.phase === "receiving" || sequence.phase === "reserved") {
          keepReceived(sequence, event.verifiedTokenCount, event.firstTokenId);
          this.#startPrompt(sequence);
        }
        break;
      }
      case "TransferClosed": {
        const sequence = this.#sequences.get(event.sequenceId);
        if (sequence === undefined) break;
        sequence.transferOpen = false;
        this.#freeIfQuiet(sequence, effects);
        break;
      }
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
    if (this.#inFlight.length >= STEPS_IN_FLIGHT_MAX) return undefined;
    const copies: PlannedCopy[] = [];
    const starts: PlannedStart[] = [];
    const slices: PlannedSlice[] = [];
    const sequences: Sequence[] = [];
    for (const sequence of this.#decoding) {
      if (sequence.samplePlannedCount >= sequence.spec.maxTokens) continue;
      slices.push(this.#planDecode(sequence, starts));
      sequences.push(sequence);
    }
    const decodeTokenCount = slices.length;
    let budget = this.options.tokenBudget - decodeTokenCount;
    // Of what is there now: a branch starts in a later step than the prompt that it copies from.
    for (const sequence of [...this.#prompting]) {
      if (budget <= 0) break;
      const slice = this.#planChunk(sequence, budget, starts, copies);
      budget -= slice.tokenCount;
      slices.push(slice);
      sequences.push(sequence);
    }
    // Drops alone are worth a step only when no other step will carry them soon.
    if (slices.length === 0 && (this.#dropped.length === 0 || this.#inFlight.length > 0)) return undefined;

    const droppedSequenceIds = this.#dropped;
    this.#dropped = [];
    for (const sequence of sequences) sequence.inFlightCount++;
    const stepId = ++this.#lastStepId;
    this.#inFlight.push({ stepId, sequences });
    const promptTokenCount = this.options.tokenBudget - decodeTokenCount - budget;
    return { stepId, copies, starts, slices, droppedSequenceIds, promptTokenCount, decodeTokenCount };
  }

  get inFlightCount(): number {
    return this.#inFlight.length;
  }

  /** When `TimePassed` will next refuse somebody. */
  nextRefusal(): Instant | undefined {
    let earliest: Instant | undefined;
    for (const sequence of this.#waiting) {
      if (earliest === undefined || sequence.waitUntil < earliest) earliest = sequence.waitUntil;
    }
    return earliest;
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
    this.pool.checkInvariants();
    const holders = new Map<BlockId, number>();
    let active = 0;
    let pinned = 0;
    for (const sequence of this.#sequences.values()) {
      const { sequenceId, maxTokens } = sequence.spec;
      const { copySource } = sequence;
      for (const blockId of copySource === undefined ? sequence.blockIds : [...sequence.blockIds, copySource]) {
        holders.set(blockId, (holders.get(blockId) ?? 0) + 1);
      }
      assert(sequence.samplePlannedCount <= maxTokens, `sequence ${sequenceId} is planned beyond max_tokens`);
      assert(
        sequence.inputPlannedCount <= sequence.inputTokenIds.length,
        `sequence ${sequenceId} is planned beyond its input`,
      );
      if (sequence.phase === "pinned") pinned += sequence.blockIds.length;
      else if (sequence.phase !== "waiting" && sequence.phase !== "ended") active++;
    }
    assert(holders.size === this.pool.takenCount, `${this.pool.takenCount} blocks are taken, ${holders.size} held`);
    for (const [blockId, count] of holders) {
      const counted = this.pool.holderCount(blockId);
      assert(counted === count, `block ${blockId} is held by ${count} sequences, counted ${counted}`);
    }
    assert(active === this.#activeCount, `${active} sequences are active, counted ${this.#activeCount}`);
    assert(active <= this.options.sequenceCountMax, `${active} sequences are active`);
    assert(pinned === this.#pinnedBlockCount, `${pinned} blocks are pinned, counted ${this.#pinnedBlockCount}`);
    assert(this.#inFlight.length <= STEPS_IN_FLIGHT_MAX, `${this.#inFlight.length} steps are in flight`);
  }

  #worstCase(spec: SequenceSpec): number {
    return worstCaseBlockCount(spec.kind, spec.promptTokenIds.length, spec.maxTokens, this.options.blockSize);
  }

  /** Blocks of a further answer beyond those it shares. */
  #branchWorstCase(spec: SequenceSpec): number {
    const { promptTokenIds, maxTokens } = spec;
    const { blockSize } = this.options;
    const whole = worstCaseBlockCount("local", promptTokenIds.length, maxTokens, blockSize);
    return whole - sharedBlockCount(promptTokenIds.length, blockSize);
  }

  #arrive(spec: SequenceSpec, waitUntil: Instant): void {
    assert(!this.#sequences.has(spec.sequenceId), `sequence ${spec.sequenceId} arrives twice`);
    assert(spec.promptTokenIds.length >= 1 && spec.maxTokens >= 1, `sequence ${spec.sequenceId} is empty`);
    assert(this.fits(spec), `sequence ${spec.sequenceId} needs more blocks than there are`);
    assert(
      isCoherent(spec),
      `sequence ${spec.sequenceId} has more output than max_tokens, or hands over and has output or branches`,
    );
    const sequence = newSequence(spec, waitUntil, this.#worstCase(spec));
    this.#sequences.set(spec.sequenceId, sequence);
    this.#waiting.push(sequence);
    const { branches = [], ...common } = spec;
    for (const { sequenceId, outputTokenIds = [] } of branches) {
      assert(!this.#sequences.has(sequenceId), `sequence ${sequenceId} arrives twice`);
      const own: SequenceSpec = { ...common, sequenceId, kind: "local", outputTokenIds };
      const branch = newSequence(own, waitUntil, this.#branchWorstCase(spec));
      branch.inputPlannedCount = spec.promptTokenIds.length - 1;
      this.#sequences.set(sequenceId, branch);
      sequence.branches.push(branch);
    }
  }

  #refuseOverdue(now: Instant, effects: SchedulerEffect[]): void {
    if (!this.#waiting.some((sequence) => sequence.waitUntil <= now)) return;
    const overdue = this.#waiting.filter((sequence) => sequence.waitUntil <= now);
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
      if (blockCount > this.pool.availableCount) return;
      this.#waiting.shift();
      this.#activeCount += group.length;
      for (const sequence of group) {
        this.pool.reserve(sequence.spec.sequenceId, sequence.worstCaseBlockCount);
        sequence.phase = "reserved";
      }
      if (kind === "local") this.#startPrompt(head);
      if (kind === "prefill") {
        // Its blocks are named in the export, which is opened before anything is computed.
        this.#take(head, Math.ceil(promptTokenIds.length / this.options.blockSize));
        head.transferOpen = true;
      }
      effects.push({ kind: "AnnounceAdmission", sequenceId, blockIds: head.blockIds.slice() });
    }
  }

  #startPrompt(sequence: Sequence): void {
    sequence.phase = "prompting";
    this.#prompting.add(sequence);
  }

  #receive(sequence: Sequence, firstTokenId: number, effects: SchedulerEffect[]): void {
    const { promptTokenIds, maxTokens } = sequence.spec;
    sequence.inputPlannedCount = promptTokenIds.length;
    const isComplete = sequence.inputTokenIds.length === promptTokenIds.length;
    if (!isComplete) this.#startPrompt(sequence);
    this.#branchOff(sequence);
    if (!isComplete) return;
    sequence.phase = "decoding";
    sequence.firstTokenId = firstTokenId;
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
      const source = blockIds[sharedCount];
      if (source !== undefined && (spec.promptTokenIds.length - 1) % this.options.blockSize > 0) {
        this.pool.share([source]);
        branch.copySource = source;
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

  #planChunk(sequence: Sequence, budget: number, starts: PlannedStart[], copies: PlannedCopy[]): PlannedSlice {
    const { inputTokenIds } = sequence;
    const { sequenceId, kind } = sequence.spec;
    const startPosition = sequence.inputPlannedCount;
    const tokenCount = Math.min(inputTokenIds.length - startPosition, budget);
    const end = startPosition + tokenCount;
    // The whole input at once, so that it lies in one run where there is one.
    const appendedBlockIds = this.#cover(sequence, inputTokenIds.length);
    if (!sequence.started) this.#start(sequence, appendedBlockIds.length, starts);
    const [targetBlockId] = appendedBlockIds;
    if (sequence.copySource !== undefined && targetBlockId !== undefined) {
      const tokenCount = startPosition % this.options.blockSize;
      copies.push({ sourceBlockId: sequence.copySource, targetBlockId, tokenCount });
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
    return { sequenceId, startPosition, tokenCount, tokenIds, appendedBlockIds, sample };
  }

  /** Names the sequence to the device with the blocks it held before this step's own. */
  #start(sequence: Sequence, appendedCount: number, starts: PlannedStart[]): void {
    const { sequenceId, promptTokenIds } = sequence.spec;
    const blockIds = sequence.blockIds.slice(0, sequence.blockIds.length - appendedCount);
    starts.push({ sequenceId, promptTokenCount: promptTokenIds.length, blockIds });
    sequence.started = true;
  }

  #cover(sequence: Sequence, tokenCount: number): readonly BlockId[] {
    const missing = Math.ceil(tokenCount / this.options.blockSize) - sequence.blockIds.length;
    return missing > 0 ? this.#take(sequence, missing) : [];
  }

  #take(sequence: Sequence, count: number): readonly BlockId[] {
    const blockIds = this.pool.take(sequence.spec.sequenceId, count);
    for (const blockId of blockIds) sequence.blockIds.push(blockId);
    return blockIds;
  }

  #completeStep(stepId: number, results: readonly SliceResult[], effects: SchedulerEffect[]): void {
    const step = this.#inFlight.shift();
    assert(step !== undefined && step.stepId === stepId, `step ${stepId} is answered, ${step?.stepId} was next`);
    assert(
      results.length === step.sequences.length,
      `step ${stepId} has ${results.length} results for ${step.sequences.length} slices`,
    );
    for (const [index, sequence] of step.sequences.entries()) {
      const result = results[index];
      assert(
        result?.sequenceId === sequence.spec.sequenceId,
        `step ${stepId} answers slice ${index} for another sequence`,
      );
      sequence.inFlightCount--;
      this.#freeCopySource(sequence);
      if (sequence.phase !== "ended") this.#applyResult(sequence, result, effects);
      this.#freeIfQuiet(sequence, effects);
    }
  }

  #applyResult(sequence: Sequence, result: SliceResult, effects: SchedulerEffect[]): void {
    if (result.outcome === "computed") return;
    const { sequenceId, kind, maxTokens, stopTokenIds } = sequence.spec;
    const { token } = result;
    assert(
      result.outcome !== "skipped" && token !== undefined,
      `sequence ${sequenceId} is ${result.outcome} without a token`,
    );
    const tokenIndex = sequence.sampleDoneCount++;
    let end: SequenceEnd | undefined;
    if (result.outcome === "stopped" && stopTokenIds.includes(token.tokenId)) end = "stop";
    else if (result.outcome === "stopped" || tokenIndex + 1 >= maxTokens) end = "length";
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
  #freeCopySource(sequence: Sequence): void {
    if (sequence.copySource === undefined) return;
    this.pool.free([sequence.copySource]);
    sequence.copySource = undefined;
  }

  #freeIfQuiet(sequence: Sequence, effects: SchedulerEffect[]): void {
    if (sequence.phase !== "ended" || sequence.inFlightCount > 0 || sequence.transferOpen) return;
    const { sequenceId } = sequence.spec;
    if (!this.#sequences.delete(sequenceId)) return;
    this.#freeCopySource(sequence);
    this.pool.free(sequence.blockIds);
    sequence.blockIds = [];
    effects.push({ kind: "ForgetSequence", sequenceId });
  }
}
