import { assert } from "../assert.ts";
import { addNanos, type Instant, type Nanos, NEVER } from "../time.ts";

/** What a lease protects: KV awaited on a decode worker, or KV that waits on a prefill worker to be pulled. */
export type LeasePurpose = "reservation" | "pin";

export interface Lease {
  readonly leaseId: string;
  readonly purpose: LeasePurpose;
  /** Whose blocks: the sequence that ends when the lease does. */
  readonly sequenceId: number;
  readonly expiresAt: Instant;
}

/**
 * Who may keep the blocks of a transfer, and until when. Each transfer of a worker has exactly one lease while it lives; the
 * sequence under it holds the blocks. When `expire` names a lease, its holder must end the sequence: nothing else frees it.
 */
export class LeaseTable {
  readonly #leases = new Map<string, Lease>();

  get size(): number {
    return this.#leases.size;
  }

  /** Grants a lease; a retry with the same id gets the first answer again. */
  grant(leaseId: string, purpose: LeasePurpose, sequenceId: number, lifetime: Nanos, now: Instant): Lease {
    const repeated = this.#leases.get(leaseId);
    if (repeated) return repeated;
    assert(lifetime > 0, `lease ${leaseId} would live ${lifetime} ns`);
    const lease: Lease = { leaseId, purpose, sequenceId, expiresAt: addNanos(now, lifetime) };
    this.#leases.set(leaseId, lease);
    return lease;
  }

  /** Moves the end of a live lease to `lifetime` from now, never earlier than it was. False: it is gone, ask for a new one. */
  extend(leaseId: string, lifetime: Nanos, now: Instant): boolean {
    const lease = this.#leases.get(leaseId);
    if (lease === undefined || lease.expiresAt <= now) return false;
    const expiresAt = Math.max(lease.expiresAt, addNanos(now, lifetime)) as Instant;
    this.#leases.set(leaseId, { ...lease, expiresAt });
    return true;
  }

  /** Ends a lease before its time. Releasing an unknown or ended lease is fine: releases may be repeated. */
  release(leaseId: string): boolean {
    return this.#leases.delete(leaseId);
  }

  get(leaseId: string): Lease | undefined {
    return this.#leases.get(leaseId);
  }

  /** Takes out and names the leases that are over, by expiry and then by id. */
  expire(now: Instant): readonly Lease[] {
    const expired = [...this.#leases.values()].filter((lease) => lease.expiresAt <= now);
    for (const lease of expired) this.#leases.delete(lease.leaseId);
    return expired.sort((a, b) => a.expiresAt - b.expiresAt || (a.leaseId < b.leaseId ? -1 : 1));
  }

  /** When `expire` will next find something; NEVER when there is no lease. */
  nextExpiry(): Instant {
    let earliest = NEVER;
    for (const lease of this.#leases.values()) if (lease.expiresAt < earliest) earliest = lease.expiresAt;
    return earliest;
  }

  leases(): IterableIterator<Lease> {
    return this.#leases.values();
  }

  checkInvariants(): void {
    const sequenceIds = new Set<number>();
    for (const [leaseId, lease] of this.#leases) {
      assert(lease.leaseId === leaseId, `lease ${leaseId} is filed under another id`);
      assert(Number.isFinite(lease.expiresAt), `lease ${leaseId} never ends`);
      assert(!sequenceIds.has(lease.sequenceId), `sequence ${lease.sequenceId} is under two leases`);
      sequenceIds.add(lease.sequenceId);
    }
  }
}
