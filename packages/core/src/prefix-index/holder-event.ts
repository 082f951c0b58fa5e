import type { Medium } from "./media.ts";

/**
 * What a holder tells of its blocks, in order: the sequence of its events goes up by one within an epoch and starts at 1. Hashes are packed,
 * 16 bytes each, in the order of the prompt where they come from one.
 */
export type HolderEvent = {
  /** Of the holder's incarnation; grows with each. */
  readonly epoch: number;
  readonly sequence: number;
} & (
  | { readonly kind: "BlocksStored"; readonly medium: Medium; readonly hashes: Uint8Array }
  | { readonly kind: "BlocksRemoved"; readonly medium: Medium; readonly hashes: Uint8Array }
  /** It holds nothing any more. */
  | { readonly kind: "BlocksCleared" }
  /**
   * Part of everything it holds as of event `sequence`, all parts with the same one; they come one after another, and then the events after
   * it. Until the last part came the index answers from what it knew before.
   */
  | {
      readonly kind: "SnapshotPart";
      readonly part: number;
      readonly isLast: boolean;
      readonly medium: Medium;
      readonly hashes: Uint8Array;
    }
);

/** Every way an event can end. */
export type HolderEventOutcome =
  /** `ignoredBlockCount`: those for which there was no room. */
  | { readonly kind: "applied"; readonly ignoredBlockCount: number }
  /** It came before and changed nothing. */
  | { readonly kind: "repeated" }
  /** An event is missing: nothing is taken but a snapshot, which has to be asked for if `isNew`. What was known stays, as a hint. */
  | {
      readonly kind: "needs_snapshot";
      readonly expectedSequence: number;
      readonly isNew: boolean;
    }
  /** From an incarnation that is over. */
  | { readonly kind: "stale_epoch"; readonly epoch: number }
  /** One holder more than there is room for. */
  | { readonly kind: "too_many_holders"; readonly holderMax: number };
