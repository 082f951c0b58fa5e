import type { Instant } from "../time.ts";

/** What is known of a block when it comes. */
export interface BlockFacts {
  /** 32 well-mixed bits of its key: what remembers blocks that are gone goes by them. */
  readonly keyBits: number;
  /** Tokens before it in its text. */
  readonly position: number;
  /** Time to compute it over time to keep it, relative to the other blocks: 1 where all are alike. Above 0. */
  readonly worth: number;
}

/**
 * Which block leaves a full tier. Blocks are dense slots from 0, so that 10 M of them lie in typed arrays. A block that must stay (it is being
 * read, or pinned) is taken out with `remove` and put back with `insert`; what was learnt of it stays with its key.
 */
export interface EvictionPolicy {
  /** Slots that may be chosen. */
  readonly size: number;
  /** A block came into a slot, which is one use of it. */
  insert(slot: number, facts: BlockFacts, now: Instant): void;
  /** It was used again. The blocks of one request come with one `now`, the ends of texts before their beginnings. */
  touch(slot: number, facts: BlockFacts, now: Instant): void;
  /** It left, or must stay. Not an eviction: it does not count against it. */
  remove(slot: number): void;
  /** Takes out the slot that leaves first; undefined when none may be chosen. */
  evict(): number | undefined;
}
