import { assert } from "../assert.ts";
import type { Candidate } from "./choose-placement.ts";
import { decodeBlockCount, prefillBlockCount, type RequestShape } from "./worker-facts.ts";

/** Names one request from its arrival to its end; grows with each arrival, so that a smaller key came earlier. */
export type RequestKey = number & { readonly __unit: "requestKey" };

/** What one request may take on one incarnation of a worker. */
export interface Share {
  readonly incarnation: string;
  readonly blockCount: number;
  /** Prompt tokens to compute there; they count until the first token. */
  readonly promptTokenCount: number;
  /** 1 where it will be decoded, 0 where only its prompt is computed. */
  readonly sequenceCount: 0 | 1;
}

/** Sums over the live requests of one incarnation. */
export interface Reserved {
  readonly blockCount: number;
  readonly promptTokenCount: number;
  /** Prompts that are not computed yet. */
  readonly promptCount: number;
  readonly sequenceCount: number;
}

export const NOTHING_RESERVED: Reserved = { blockCount: 0, promptTokenCount: 0, promptCount: 0, sequenceCount: 0 };

/**
 * What this router promised to live requests, per incarnation of a worker. Counting promises instead of present use keeps a burst
 * of placements, made between two reports, from landing on one worker (DESIGN §6; Dynamo's active sequences have the same aim).
 * A share is held from placement to the request's end; the share of a prefill worker, and the prompt tokens of a mixed one,
 * only to the first token.
 */
export class ReservationTable {
  readonly #shares = new Map<RequestKey, readonly Share[]>();
  readonly #sums = new Map<string, Reserved & { readonly shareCount: number }>();

  /** Requests that hold something. */
  get requestCount(): number {
    return this.#shares.size;
  }

  of(incarnation: string): Reserved {
    return this.#sums.get(incarnation) ?? NOTHING_RESERVED;
  }

  has(key: RequestKey): boolean {
    return this.#shares.has(key);
  }

  hold(key: RequestKey, shares: readonly Share[]): void {
    assert(!this.#shares.has(key), `request ${key} holds a placement already`);
    this.#shares.set(key, shares);
    for (const share of shares) this.#add(share, 1);
  }

  /** The prompt is computed: what was held for it alone is given back. Repeating it changes nothing. */
  endPrefill(key: RequestKey): void {
    const shares = this.#shares.get(key);
    if (shares === undefined) return;
    for (const share of shares) this.#add(share, -1);
    const kept = shares
      .filter((share) => share.sequenceCount === 1)
      .map((share) => ({ ...share, promptTokenCount: 0 }));
    this.#shares.set(key, kept);
    for (const share of kept) this.#add(share, 1);
  }

  /** Gives back everything a request holds. False when it held nothing. */
  release(key: RequestKey): boolean {
    for (const share of this.#shares.get(key) ?? []) this.#add(share, -1);
    return this.#shares.delete(key);
  }

  #add(share: Share, sign: 1 | -1): void {
    const name = share.incarnation;
    const sum = this.#sums.get(name) ?? { ...NOTHING_RESERVED, shareCount: 0 };
    const shareCount = sum.shareCount + sign;
    if (shareCount === 0) {
      this.#sums.delete(name);
      return;
    }
    this.#sums.set(name, {
      blockCount: sum.blockCount + sign * share.blockCount,
      promptTokenCount: sum.promptTokenCount + sign * share.promptTokenCount,
      promptCount: sum.promptCount + (share.promptTokenCount > 0 ? sign : 0),
      sequenceCount: sum.sequenceCount + sign * share.sequenceCount,
      shareCount,
    });
  }

  checkInvariants(): void {
    const expected = new Map<
      string,
      { blocks: number; tokens: number; prompts: number; sequences: number; shares: number }
    >();
    for (const shares of this.#shares.values()) {
      for (const share of shares) {
        const name = share.incarnation;
        const sum = expected.get(name) ?? { blocks: 0, tokens: 0, prompts: 0, sequences: 0, shares: 0 };
        sum.blocks += share.blockCount;
        sum.tokens += share.promptTokenCount;
        sum.prompts += Number(share.promptTokenCount > 0);
        sum.sequences += share.sequenceCount;
        sum.shares++;
        expected.set(name, sum);
      }
    }
    assert(expected.size === this.#sums.size, `${this.#sums.size} sums for ${expected.size} incarnations`);
    for (const [name, sum] of this.#sums) {
      const recount = expected.get(name);
      assert(recount !== undefined, `${name} holds a sum and no request`);
      assert(sum.blockCount === recount.blocks && sum.blockCount >= 0, `blocks of ${name} are ${sum.blockCount}`);
      assert(sum.promptCount === recount.prompts, `prompts of ${name} are ${sum.promptCount}`);
      assert(sum.promptTokenCount === recount.tokens, `prompt tokens of ${name} are ${sum.promptTokenCount}`);
      assert(sum.sequenceCount === recount.sequences, `sequences of ${name} are ${sum.sequenceCount}`);
      assert(sum.shareCount === recount.shares, `shares of ${name} are ${sum.shareCount}`);
    }
  }
}

/** Names one incarnation of a worker. */
export function incarnationOf(workerId: string, epoch: number): string {
  return `${workerId}@${epoch}`;
}

/** What a placement takes. */
export function sharesOf(
  { mode, prefill, decode, uncachedTokenCount }: Candidate,
  request: RequestShape,
): readonly Share[] {
  const decodeShare: Share = {
    incarnation: decode.incarnation,
    blockCount: decodeBlockCount(request, decode.facts.blockSize),
    promptTokenCount: mode === "aggregated" ? uncachedTokenCount : 0,
    sequenceCount: 1,
  };
  if (prefill === undefined) return [decodeShare];
  const prefillShare: Share = {
    incarnation: prefill.incarnation,
    blockCount: prefillBlockCount(request, prefill.facts.blockSize),
    promptTokenCount: uncachedTokenCount,
    sequenceCount: 0,
  };
  return [decodeShare, prefillShare];
}
