import { assert } from "../assert.ts";
import type { BlockId } from "../block/block-pool.ts";
import { BlockHashChain } from "../prefix/block-hash.ts";
import type { TokenSpan } from "../prefix-fetch/token-span.ts";
import type { Instant } from "../time.ts";
import type { SchedulerEvent, SequenceEnd, SequenceId, SequenceSpec, SliceOutcome } from "./events.ts";

/**
 * Where a sequence is.
 * - `waiting`: holds nothing, in the admission queue.
 * - `reserved`: holds a counted reservation, and blocks that are reused, and awaits its export (prefill) or its ticket (decode).
 * - `receiving`: decode kind, its prompt blocks are being written by a fetch.
 * - `prompting`: tokens of the prompt or of known output are left to plan.
 * - `decoding`: in the running batch.
 * - `pinned`: prefill kind, all planned; the blocks wait to be pulled.
 * - `ended`: nothing more is planned; blocks go when the last step in flight is answered and the transfer is closed.
 */
export type SequencePhase = "waiting" | "reserved" | "receiving" | "prompting" | "decoding" | "pinned" | "ended";

export interface Sequence {
  readonly spec: SequenceSpec;
  /** Prompt and known output: what is computed before anything is sampled. */
  inputTokenIds: readonly number[];
  readonly waitUntil: Instant;
  readonly worstCaseBlockCount: number;
  phase: SequencePhase;
  blockIds: BlockId[];
  /** Of `inputTokenIds`, planned, reused or received so far. */
  inputPlannedCount: number;
  /** Hashes of its blocks, as far as their tokens are known; absent: nothing is reused or kept. */
  readonly chain: BlockHashChain | undefined;
  /** Of `inputTokenIds`: their KV was there, and nobody computes it for this sequence. */
  cachedTokenCount: number;
  /** Its KV, or what it was computed from, is not exact: it is not for others. */
  isApproximate: boolean;
  /** Its first blocks, whose KV others may reuse. */
  keptBlockCount: number;
  /** Tokens of output that are known, planned or done: what a sequence brought along is among them. */
  samplePlannedCount: number;
  /** Tokens sampled and reported, counted likewise. */
  sampleDoneCount: number;
  /** Decode kind, until its first slice: the token to feed in. */
  firstTokenId: number | undefined;
  /** The device knows the sequence. */
  started: boolean;
  /** Steps in flight that name it. */
  inFlightCount: number;
  /** A transfer may read or write its blocks. */
  transferOpen: boolean;
  /** A fetch may write these tokens of its prompt. */
  awaited: TokenSpan | undefined;
  /** Fetched tokens beyond those that are planned, in order. */
  arrived: readonly TokenSpan[];
  /** Further answers that wait for this one's prompt. */
  branches: Sequence[];
  /** Blocks that its own are copied from, held until that is done. */
  copySources: BlockId[];
}

/** The chain of a prompt's blocks, to be forked for each of its answers. */
export function promptChain(spec: SequenceSpec, blockSize: number): BlockHashChain | undefined {
  const { prefixRoot, promptTokenIds } = spec;
  if (prefixRoot === undefined) return undefined;
  if (spec.promptChain !== undefined) return spec.promptChain;
  const chain = new BlockHashChain(prefixRoot, blockSize);
  chain.extend(promptTokenIds);
  return chain;
}

/** `prompt`: chain of its prompt, which becomes its own with what is known of its output. */
export function newSequence(
  spec: SequenceSpec,
  waitUntil: Instant,
  worstCaseBlockCount: number,
  prompt: BlockHashChain | undefined,
): Sequence {
  const { promptTokenIds, outputTokenIds = [] } = spec;
  const chain = prompt?.fork();
  chain?.extend(outputTokenIds);
  return {
    spec,
    inputTokenIds: outputTokenIds.length === 0 ? promptTokenIds : [...promptTokenIds, ...outputTokenIds],
    waitUntil,
    worstCaseBlockCount,
    phase: "waiting",
    blockIds: [],
    inputPlannedCount: 0,
    chain,
    cachedTokenCount: 0,
    isApproximate: false,
    keptBlockCount: 0,
    samplePlannedCount: outputTokenIds.length,
    sampleDoneCount: outputTokenIds.length,
    firstTokenId: undefined,
    started: false,
    inFlightCount: 0,
    transferOpen: false,
    awaited: undefined,
    arrived: [],
    branches: [],
    copySources: [],
  };
}

/** In which order prompts are planned: that of admission, and last those whose own KV may still arrive, with what nobody else needs of a step. */
export function planOrder(prompting: Iterable<Sequence>): Sequence[] {
  const first: Sequence[] = [];
  const last: Sequence[] = [];
  for (const sequence of prompting) (sequence.awaited === undefined ? first : last).push(sequence);
  return [...first, ...last];
}

/** What may be planned of a sequence's input: from behind what has arrived, up to what is awaited or has arrived further on. */
export function nextChunk(sequence: Sequence, budget: number): TokenSpan {
  for (let [next] = sequence.arrived; next?.begin === sequence.inputPlannedCount; [next] = sequence.arrived) {
    sequence.inputPlannedCount = next.end;
    sequence.arrived = sequence.arrived.slice(1);
  }
  const { awaited, arrived, inputTokenIds, inputPlannedCount } = sequence;
  const limit = Math.min(awaited?.begin ?? inputTokenIds.length, arrived[0]?.begin ?? inputTokenIds.length);
  return { begin: inputPlannedCount, end: Math.min(limit, inputPlannedCount + budget) };
}

/** Of its input, still to be computed here as far as is known. */
export function uncomputedCount({ inputTokenIds, inputPlannedCount, awaited, arrived }: Sequence): number {
  const spans = awaited === undefined ? arrived : [...arrived, awaited];
  return spans.reduce((count, span) => count - (span.end - span.begin), inputTokenIds.length - inputPlannedCount);
}

export interface InputProgress {
  /** What is planned, reused or fetched, from its beginning on. */
  readonly plannedCount: number;
  /** Whether any of that is on the device. */
  readonly isComputing: boolean;
}

/** How far its input is; undefined once it has ended. */
export function progressOf(sequence: Sequence | undefined): InputProgress | undefined {
  if (sequence === undefined || sequence.phase === "ended") return undefined;
  return { plannedCount: sequence.inputPlannedCount, isComputing: sequence.inFlightCount > 0 };
}

/** A fetch may write these tokens from now on, and what arrived before them is there; nothing, where the sequence has ended meanwhile. */
export function awaitKv(
  sequence: Sequence,
  { span, arrived = [], isApproximate = false }: Extract<SchedulerEvent, { kind: "KvAwaited" }>,
  blockSize: number,
): void {
  const { spec, phase, inputPlannedCount, blockIds } = sequence;
  const isFetching = spec.kind === "prefill" || (spec.kind === "local" && spec.fetches === true);
  if (!isFetching || (phase !== "reserved" && phase !== "prompting")) return;
  const isWhole = span.begin % blockSize === 0 && span.end % blockSize === 0 && span.begin < span.end;
  assert(
    isWhole && span.begin >= inputPlannedCount && span.end < spec.promptTokenIds.length,
    `sequence ${spec.sequenceId} awaits [${span.begin}, ${span.end}) with ${inputPlannedCount} of ${spec.promptTokenIds.length} planned`,
  );
  assert(span.end <= blockIds.length * blockSize, `sequence ${spec.sequenceId} awaits KV beyond its blocks`);
  assertInOrder(spec.sequenceId, arrived, { begin: inputPlannedCount, end: span.begin });
  sequence.awaited = span;
  sequence.arrived = arrived;
  sequence.isApproximate ||= isApproximate;
}

/** No fetch writes any more, and so much of what was awaited came, of which some may be lossy. */
export function keepFetched(sequence: Sequence, spans: readonly TokenSpan[], isApproximate: boolean): void {
  const { spec, awaited, arrived, inputPlannedCount } = sequence;
  const end = spec.promptTokenIds.length;
  assertInOrder(spec.sequenceId, spans, { begin: Math.max(awaited?.begin ?? end, inputPlannedCount), end });
  sequence.awaited = undefined;
  sequence.arrived = [...arrived, ...spans];
  sequence.isApproximate ||= isApproximate;
}

function assertInOrder(sequenceId: SequenceId, spans: readonly TokenSpan[], within: TokenSpan): void {
  let end = within.begin;
  for (const span of spans) {
    const isBehind = span.begin >= end && span.end > span.begin && span.end <= within.end;
    assert(isBehind, `sequence ${sequenceId} has not awaited [${span.begin}, ${span.end})`);
    end = span.end;
  }
}

/** How a sampled token ends its sequence, if it does. */
export function endOf(
  { maxTokens, stopTokenIds }: SequenceSpec,
  outcome: SliceOutcome,
  tokenId: number,
  tokenIndex: number,
): SequenceEnd | undefined {
  if (outcome === "stopped" && stopTokenIds.includes(tokenId)) return "stop";
  return outcome === "stopped" || tokenIndex + 1 >= maxTokens ? "length" : undefined;
}

/** A sequence and those of its branches that wait for it. */
export function groupOf(sequence: Sequence): Sequence[] {
  return [sequence, ...sequence.branches.filter((branch) => branch.phase !== "ended")];
}

/** Whether known output leaves something to sample, and a sequence that hands over has neither output nor branches. */
export function isCoherent({ kind, maxTokens, outputTokenIds = [], branches = [] }: SequenceSpec): boolean {
  const outputs = [outputTokenIds, ...branches.map((branch) => branch.outputTokenIds ?? [])];
  if (kind === "prefill") return branches.length === 0 && outputTokenIds.length === 0;
  return outputs.every((output) => output.length < maxTokens);
}

/** Of a prompt whose KV was to come from elsewhere, so much is there; a first token that is known becomes known output. */
export function keepReceived(sequence: Sequence, verifiedTokenCount: number, firstTokenId: number | undefined): void {
  const { sequenceId, promptTokenIds, maxTokens, outputTokenIds = [] } = sequence.spec;
  const thereCount = sequence.phase === "receiving" ? promptTokenIds.length : sequence.cachedTokenCount;
  assert(
    verifiedTokenCount <= thereCount,
    `sequence ${sequenceId} keeps ${verifiedTokenCount} tokens of ${thereCount} that may be there`,
  );
  if (firstTokenId !== undefined && outputTokenIds.length === 0) {
    assert(maxTokens > 1, `sequence ${sequenceId} goes on after its last token`);
    sequence.inputTokenIds = [...promptTokenIds, firstTokenId];
    sequence.chain?.extend([firstTokenId]);
    sequence.samplePlannedCount = 1;
    sequence.sampleDoneCount = 1;
  }
  // The last token is computed in any case: its logits are what is sampled from. What is reused is never computed again: others read it.
  const thereNow = Math.max(verifiedTokenCount, sequence.cachedTokenCount);
  sequence.inputPlannedCount = Math.min(thereNow, sequence.inputTokenIds.length - 1);
}
