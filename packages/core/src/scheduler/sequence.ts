import type { BlockId } from "../block/block-pool.ts";
import type { Instant } from "../time.ts";
import type { SequenceSpec } from "./events.ts";

/**
 * Where a sequence is.
 * - `waiting`: holds nothing, in the admission queue.
 * - `reserved`: holds a counted reservation and awaits its export (prefill) or its ticket (decode).
 * - `receiving`: decode kind, its prompt blocks are being written by a fetch.
 * - `prompting`: prompt tokens are left to plan.
 * - `decoding`: in the running batch.
 * - `pinned`: prefill kind, all planned; the blocks wait to be pulled.
 * - `ended`: nothing more is planned; blocks go when the last step in flight is answered and the transfer is closed.
 */
export type SequencePhase = "waiting" | "reserved" | "receiving" | "prompting" | "decoding" | "pinned" | "ended";

export interface Sequence {
  readonly spec: SequenceSpec;
  readonly waitUntil: Instant;
  readonly worstCaseBlockCount: number;
  phase: SequencePhase;
  blockIds: BlockId[];
  /** Prompt tokens planned so far. */
  promptPlannedCount: number;
  /** Tokens whose sampling is planned or done, the one that a decode sequence brought along among them. */
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
  /** Further answers that wait for this one's prompt. */
  branches: Sequence[];
  /** A branch's: the block of its parent that its own last prompt block is copied from, held until that is done. */
  copySource: BlockId | undefined;
}

export function newSequence(spec: SequenceSpec, waitUntil: Instant, worstCaseBlockCount: number): Sequence {
  return {
    spec,
    waitUntil,
    worstCaseBlockCount,
    phase: "waiting",
    blockIds: [],
    promptPlannedCount: 0,
    samplePlannedCount: 0,
    sampleDoneCount: 0,
    firstTokenId: undefined,
    started: false,
    inFlightCount: 0,
    transferOpen: false,
    branches: [],
    copySource: undefined,
  };
}
