import type { BlockId } from "../block/block-pool.ts";
import type { BlockHashChain } from "../prefix/block-hash.ts";
import type { TokenSpan } from "../prefix-fetch/token-span.ts";
import type { Instant } from "../time.ts";

/** One request inside one engine; unique for the life of the engine. */
export type SequenceId = number & { readonly __brand: "SequenceId" };

/**
 * What this worker does for the sequence.
 * - `local`: prompt and output here (aggregated).
 * - `prefill`: the prompt and its first token; then the blocks wait to be pulled.
 * - `decode`: the prompt's KV and the first token come from elsewhere; the rest is generated here.
 */
export type SequenceKind = "local" | "prefill" | "decode";

export interface SequenceSpec {
  readonly sequenceId: SequenceId;
  readonly kind: SequenceKind;
  /** At least one. */
  readonly promptTokenIds: readonly number[];
  /** At least 1, and promptTokenIds.length + maxTokens fits the context (`clipMaxTokens`). */
  readonly maxTokens: number;
  readonly stopTokenIds: readonly number[];
  /** Root of its blocks' hashes (`prefixRoot`); absent: KV of others is not reused, and its own not kept for others. */
  readonly prefixRoot?: Uint8Array;
  /** Whose it is, for stores that are told which blocks it used; absent: nobody is told. */
  readonly scope?: RequestScope;
  /** The chain of the prompt under that root, where it is known already; else it is computed. */
  readonly promptChain?: BlockHashChain;
  /** Local kind: KV of the prompt may be fetched, so that its blocks are taken and told at admission. */
  readonly fetches?: boolean;
  /** Every token of the prompt is computed, because more is wanted of it than its KV. What is computed is kept all the same. */
  readonly computesWholePrompt?: boolean;
  /**
   * Output that is known, of a request that began elsewhere, for local and decode kind: fewer than maxTokens. It is computed after the prompt,
   * in chunks like the prompt, and the first token sampled is the one after it.
   */
  readonly outputTokenIds?: readonly number[];
  /**
   * Further answers to the same prompt, for local and decode kind: each a sequence of its own that shares the prompt's full blocks and has a
   * copy of its last one. They are admitted, refused and, until the prompt is there, closed together with this one.
   */
  readonly branches?: readonly BranchSpec[];
}

/** A request, and whose its text is. */
export interface RequestScope {
  /** 16 bytes. */
  readonly tenantScope: Uint8Array;
  /** The same on every worker that serves it. */
  readonly requestId: string;
}

export interface BranchSpec {
  readonly sequenceId: SequenceId;
  readonly outputTokenIds?: readonly number[];
}

/** A sampled token as the device reports it. The scheduler reads the id only. */
export interface Token {
  readonly tokenId: number;
  readonly logprob?: number | undefined;
  readonly topLogprobs: readonly TokenLogprob[];
  /** With the first token, when asked for: one for each token of the prompt but the first. */
  readonly promptLogprobs?: readonly PromptLogprob[];
}

export interface TokenLogprob {
  readonly tokenId: number;
  readonly logprob: number;
}

/** How likely the model held a token of the prompt; `rank` is its place by probability, from 1. */
export interface PromptLogprob extends TokenLogprob {
  readonly rank: number;
  readonly topLogprobs: readonly TokenLogprob[];
}

/** How the device ended one slice. `stopped`: a stop token or the last token that was asked for; `skipped`: it had stopped before. */
export type SliceOutcome = "computed" | "sampled" | "stopped" | "skipped";

export interface SliceResult {
  readonly sequenceId: number;
  readonly outcome: SliceOutcome;
  /** Present when sampled or stopped. */
  readonly token?: Token | undefined;
}

export type SchedulerEvent =
  /** Wants to be admitted before `waitUntil`. */
  | { readonly kind: "SequenceArrived"; readonly spec: SequenceSpec; readonly waitUntil: Instant }
  /** Its owner wants nothing more of it: cancelled, failed, or pulled. Repeating it, or naming a forgotten sequence, does nothing. */
  | { readonly kind: "SequenceClosed"; readonly sequenceId: SequenceId }
  /** Prefill kind: the blocks are open to pulls, computing may begin. */
  | { readonly kind: "ExportOpened"; readonly sequenceId: SequenceId }
  /** Decode kind: the ticket is there, the prompt needs physical blocks now. */
  | { readonly kind: "KvOffered"; readonly sequenceId: SequenceId }
  /**
   * Decode kind: the prompt's KV is in place and verified, and the first token is known (unused where output is known). `isApproximate`: it is not
   * what this worker would have computed (another number format, a lossy encoding), so nothing of this sequence is kept for others.
   */
  | {
      readonly kind: "KvArrived";
      readonly sequenceId: SequenceId;
      readonly firstTokenId: number;
      readonly isApproximate?: boolean;
    }
  /**
   * Decode kind, not yet arrived: no more KV will come, and none is written. What is beyond these tokens of the prompt, at least those that are
   * cached, is computed here, and the first token, where it is known, is computed and not sampled.
   */
  | {
      readonly kind: "KvLost";
      readonly sequenceId: SequenceId;
      readonly verifiedTokenCount: number;
      readonly firstTokenId?: number | undefined;
      readonly isApproximate?: boolean;
    }
  /**
   * Prefill kind, or one that `fetches`, admitted: a fetch may write these tokens of the prompt, whole blocks, from now on, and nothing of them is
   * planned. They are not planned yet, and not the prompt's last. Again, with a later beginning: what is before it is computed here after all, but for
   * `arrived`, all whole blocks, in their order, that are there, are not planned yet and that no fetch writes any more; `isApproximate`: see `KvFetched`.
   */
  | {
      readonly kind: "KvAwaited";
      readonly sequenceId: SequenceId;
      readonly span: TokenSpan;
      readonly arrived?: readonly TokenSpan[];
      readonly isApproximate?: boolean;
    }
  /**
   * No fetch writes any more. Of what is awaited these spans, whole blocks in their order, are there, and the others are computed. `isApproximate`:
   * some of it came at a lossy level, so from here on nothing of this sequence is kept for others.
   */
  | {
      readonly kind: "KvFetched";
      readonly sequenceId: SequenceId;
      readonly spans: readonly TokenSpan[];
      readonly isApproximate?: boolean;
    }
  /** No transfer reads (Release answered) or writes (Fence answered) the sequence's blocks any more. */
  | { readonly kind: "TransferClosed"; readonly sequenceId: SequenceId }
  /** The device answered the oldest step in flight. */
  | { readonly kind: "StepCompleted"; readonly stepId: number; readonly results: readonly SliceResult[] }
  /** Nothing but time. */
  | { readonly kind: "TimePassed" };

export type SequenceEnd = "stop" | "length";

export type SchedulerEffect =
  /**
   * Admitted. `blockIds`: the prompt's blocks for prefill kind, which must now be published, and for those that fetch; those that are reused for
   * the others. With the KV of the input's first `cachedTokenCount` tokens.
   */
  | {
      readonly kind: "AnnounceAdmission";
      readonly sequenceId: SequenceId;
      readonly blockIds: readonly BlockId[];
      readonly cachedTokenCount: number;
    }
  /** It waited until `waitUntil` in vain, and is forgotten. */
  | { readonly kind: "RefuseSequence"; readonly sequenceId: SequenceId }
  /** Decode kind: write the prompt's KV into these blocks, from the first token on that is not cached. */
  | { readonly kind: "OpenFetch"; readonly sequenceId: SequenceId; readonly blockIds: readonly BlockId[] }
  /** A token was sampled; with `end` it is the last one. */
  | {
      readonly kind: "DeliverToken";
      readonly sequenceId: SequenceId;
      readonly token: Token;
      /** 0 for the first token after the prompt. */
      readonly tokenIndex: number;
      readonly end: SequenceEnd | undefined;
    }
  /** It ends, and its first blocks stay cached for now: their hashes, 16 bytes each. */
  | {
      readonly kind: "TellUsedBlocks";
      readonly sequenceId: SequenceId;
      readonly scope: RequestScope;
      readonly hashes: Uint8Array;
    }
  /** Its blocks are free again and its id means nothing any more. */
  | { readonly kind: "ForgetSequence"; readonly sequenceId: SequenceId };

export interface PlannedStart {
  readonly sequenceId: SequenceId;
  readonly promptTokenCount: number;
  readonly blockIds: readonly BlockId[];
  /** Tokens of its input whose KV is reused. */
  readonly cachedTokenCount: number;
}

export interface PlannedSlice {
  readonly sequenceId: SequenceId;
  readonly startPosition: number;
  readonly tokenCount: number;
  /** Empty: the token sampled last, which only the device knows. */
  readonly tokenIds: readonly number[];
  readonly appendedBlockIds: readonly BlockId[];
  readonly sample: boolean;
}

/** The first tokens of a block's KV, copied to another block. */
export interface PlannedCopy {
  readonly sourceBlockId: BlockId;
  readonly targetBlockId: BlockId;
  readonly tokenCount: number;
}

/** One step. Carries differences: new sequences, appended blocks, sequences to forget. */
export interface StepPlan {
  /** From 1, growing by one. */
  readonly stepId: number;
  /** Done before anything is computed. */
  readonly copies: readonly PlannedCopy[];
  readonly starts: readonly PlannedStart[];
  readonly slices: readonly PlannedSlice[];
  readonly droppedSequenceIds: readonly SequenceId[];
  /** Tokens computed, by phase. */
  readonly promptTokenCount: number;
  readonly decodeTokenCount: number;
}
