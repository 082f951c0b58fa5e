import {
  addNanos,
  type BlockPool,
  type Instant,
  type LeaseTable,
  type Loan,
  nanosFromMs,
  type SequencePhase,
} from "@kvasir/core";

/** A lease that ended this long ago should have been cleared by its holder. */
export const LEASE_SLACK = nanosFromMs(2_000);

/** Blocks of a pool by what is behind them. */
export interface AuditedBlocks {
  readonly total: number;
  readonly free: number;
  /** Held by a sequence, for whatever reason. */
  readonly used: number;
  /** Promised and not taken. */
  readonly reserved: number;
  /** Of sequences that await KV under a lease: taken or reserved. */
  readonly leased: number;
  /** Of prompts under a lease that wait to be pulled, and of loans. */
  readonly pinned: number;
  /** With KV that later requests may reuse, held or free. */
  readonly cached: number;
  /** Taken, but behind them is no owner, no valid lease, no step in flight and no transfer that ends. */
  readonly orphaned: number;
}

export interface AuditedSequence {
  readonly spec: { readonly sequenceId: number };
  readonly worstCaseBlockCount: number;
  readonly phase: SequencePhase;
  readonly blockIds: readonly number[];
  readonly inFlightCount: number;
  readonly transferOpen: boolean;
  readonly awaited: object | undefined;
  readonly copySources: readonly number[];
}

/**
 * Counts from the ground up: starts at the physical blocks and asks for each holder whether something live stands behind it, instead
 * of trusting the scheduler's own counters. `isOwned`: a request or a peer still listens to the sequence.
 */
export function auditBlocks(facts: {
  readonly sequences: Iterable<AuditedSequence>;
  readonly pool: BlockPool;
  readonly leases: LeaseTable;
  readonly loans?: Iterable<Loan>;
  readonly isOwned: (sequenceId: number) => boolean;
  readonly now: Instant;
}): AuditedBlocks {
  const { pool, leases, now } = facts;
  const leasedSequences = new Map<number, "reservation" | "pin" | "lapsed">();
  for (const lease of leases.leases()) {
    const lapsed = addNanos(lease.expiresAt, LEASE_SLACK) <= now;
    leasedSequences.set(lease.sequenceId, lapsed ? "lapsed" : lease.purpose);
  }
  const accounted = new Uint8Array(pool.blockCount);
  let leased = 0;
  let pinned = 0;
  for (const sequence of facts.sequences) {
    const { sequenceId } = sequence.spec;
    const lease = leasedSequences.get(sequenceId);
    // A reservation under a lease counts whole, whether its blocks are physical yet or not.
    if (lease === "reservation" && sequence.phase !== "waiting") leased += sequence.worstCaseBlockCount;
    if (lease === "pin") pinned += sequence.blockIds.length;
    const isTouched = sequence.inFlightCount > 0 || sequence.transferOpen || sequence.awaited !== undefined;
    const draining = sequence.phase === "ended" && isTouched;
    const live = draining || (facts.isOwned(sequenceId) && lease !== "lapsed");
    if (!live) continue;
    for (const blockId of sequence.blockIds) accounted[blockId] = 1;
    for (const blockId of sequence.copySources) accounted[blockId] = 1;
  }
  for (const { blockIds, expiresAt } of facts.loans ?? []) {
    pinned += blockIds.length;
    if (addNanos(expiresAt, LEASE_SLACK) > now) for (const blockId of blockIds) accounted[blockId] = 1;
  }
  let orphaned = 0;
  for (let blockId = 0; blockId < pool.blockCount; blockId++) {
    if (pool.holderCount(blockId) > 0 && accounted[blockId] === 0) orphaned++;
  }
  return {
    total: pool.blockCount,
    free: pool.freeCount,
    used: pool.takenCount,
    reserved: pool.reservedCount,
    leased,
    pinned,
    cached: pool.cachedCount,
    orphaned,
  };
}
