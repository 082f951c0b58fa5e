import { assert } from "../assert.ts";
import type { BlockId, BlockPool } from "../block/block-pool.ts";
import { addNanos, type Instant, type Nanos } from "../time.ts";

/** Cached blocks that stay in place while somebody copies them. */
export interface Loan {
  readonly loanId: string;
  readonly blockIds: readonly BlockId[];
  readonly expiresAt: Instant;
}

/** Every way a loan can be answered. No block at all is a loan of none. */
export type LoanOutcome = { readonly kind: "lent"; readonly loan: Loan } | { readonly kind: "too_many" };

/**
 * Blocks of a pool's cache that are lent to stores. A lent block is held, so it takes no part in reservations; `blockMax` bounds what loans may
 * keep from requests. Whoever takes a loan gives it back once nothing reads its blocks, at the latest when it has lapsed.
 */
export class LoanTable {
  readonly #pool: BlockPool;
  readonly #blockMax: number;
  readonly #loans = new Map<string, Loan>();
  #blockCount = 0;

  /** `blockMax`: blocks on loan at once. Larger: more is stored; smaller: more room for requests. */
  constructor(pool: BlockPool, blockMax: number) {
    this.#pool = pool;
    this.#blockMax = blockMax;
  }

  get size(): number {
    return this.#loans.size;
  }

  /** Lends the blocks with these hashes, as many from the first on as are there and can be spared. */
  lend(loanId: string, hashes: Uint8Array, lifetime: Nanos, now: Instant): LoanOutcome {
    assert(!this.#loans.has(loanId), `loan ${loanId} is taken twice`);
    const room = this.#blockMax - this.#blockCount;
    if (room <= 0) return { kind: "too_many" };
    const blockIds = this.#pool.borrow(this.#pool.find(hashes).slice(0, room));
    const loan = { loanId, blockIds, expiresAt: addNanos(now, lifetime) };
    if (blockIds.length > 0) this.#loans.set(loanId, loan);
    this.#blockCount += blockIds.length;
    return { kind: "lent", loan };
  }

  /** Nothing reads its blocks any more. Unknown loans are fine. */
  giveBack(loanId: string): void {
    const loan = this.#loans.get(loanId);
    if (loan === undefined) return;
    this.#loans.delete(loanId);
    this.#blockCount -= loan.blockIds.length;
    this.#pool.free(loan.blockIds);
  }

  loans(): IterableIterator<Loan> {
    return this.#loans.values();
  }
}
