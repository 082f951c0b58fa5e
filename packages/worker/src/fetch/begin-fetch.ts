import { BLOCK_HASH_BYTES, type BlockId, hashBlocks, type SequenceId } from "@kvasir/core";
import type { PrefixFetch as FetchPlan } from "@kvasir/proto";
import type { Incarnation } from "../incarnation.ts";
import type { CheckedRequest } from "../request-check.ts";
import type { RequestMeter } from "../request-meter.ts";
import { metadataOf, type Traced } from "../tracing.ts";
import { borrow, type Lenders } from "./borrow.ts";
import { fetchSpan, PrefixFetch } from "./prefix-fetch.ts";

/** A sequence that was admitted, and of whose prompt nothing is planned. */
export interface FetchingSequence {
  readonly incarnation: Incarnation;
  readonly sequenceId: SequenceId;
  /** Its prompt's, in order. */
  readonly blockIds: readonly BlockId[];
  readonly cachedTokenCount: number;
}

export interface FetchedRequest {
  /** The router's. */
  readonly plan: FetchPlan | undefined;
  readonly request: CheckedRequest;
  readonly lenders: Lenders;
  /** `prefill.run`. */
  readonly traced: Traced;
  readonly requests: RequestMeter;
}

/** Tokens that came from elsewhere, by where they were. */
export interface FetchedTokens {
  readonly remoteWorker: number;
  readonly storeDram: number;
  readonly storeDisk: number;
}

export const NOTHING_FETCHED: FetchedTokens = { remoteWorker: 0, storeDram: 0, storeDisk: 0 };

/**
 * Begins the fetch that the router planned, if any of it is missing; counts it and tells its span of it. `fetched`: before the engine goes on with
 * that, and how many tokens at the prompt's end are approximate from then on.
 */
export function beginFetch(
  { incarnation, sequenceId, blockIds, cachedTokenCount }: FetchingSequence,
  { plan, request, lenders, traced, requests }: FetchedRequest,
  fetched: (tokens: FetchedTokens, approximateTokenCount: number) => void,
): PrefixFetch | undefined {
  const { promptTokenIds, tenantScope, reuse, kvAccuracy: accuracy, firstTokenBy } = request;
  const { prefixRoot, computesWholePrompt } = reuse;
  if (prefixRoot === undefined || computesWholePrompt) return undefined;
  const { blockSize } = incarnation.layout;
  const span = fetchSpan(plan, { promptTokenCount: promptTokenIds.length, cachedTokenCount, blockSize });
  if (span === undefined) return undefined;
  const { holder, fromStore, begin, end } = span;
  const metadata = metadataOf(traced);
  const firstBlock = begin / blockSize;
  const hashes = hashBlocks(prefixRoot, promptTokenIds.slice(0, end), blockSize).subarray(
    firstBlock * BLOCK_HASH_BYTES,
  );
  const loan = { lenders, holder, tenantScope, hashes, firstBlock, metadata };
  return new PrefixFetch({
    ...{ incarnation, sequenceId, blockIds, tenantScope, span, metadata, accuracy, firstTokenBy },
    promptTokenCount: promptTokenIds.length,
    borrow: (listener) => borrow(loan, listener),
    fellBack: (error) => {
      requests.codecFellBack();
      traced.span.addEvent("codec fell back", { "kvasir.reason": error.message });
    },
    ended: ({ tokenCount, diskTokenCount, bytes, levels, approximateFrom, failure }) => {
      const source = fromStore ? "store" : "worker";
      requests.prefixFetched(source, failure ?? "complete", { tokenCount, bytes });
      requests.kvTravelled(levels);
      const approximateTokenCount = promptTokenIds.length - (approximateFrom ?? promptTokenIds.length);
      traced.span.setAttributes({
        "kvasir.fetch_holder": holder.workerId,
        "kvasir.fetch_source": source,
        "kvasir.fetch_wanted_tokens": end - begin,
        "kvasir.fetched_tokens": tokenCount,
        "kvasir.fetched_bytes": bytes,
        "kvasir.fetched_levels": [...levels.keys()].join(","),
        "kvasir.approximate_prompt_tokens": approximateTokenCount,
        ...(failure === undefined ? {} : { "kvasir.fetch_failure": failure }),
      });
      const [storeDram, storeDisk] = [tokenCount - diskTokenCount, diskTokenCount];
      const own = fromStore ? { storeDram, storeDisk } : { remoteWorker: tokenCount };
      fetched({ ...NOTHING_FETCHED, ...own }, approximateTokenCount);
    },
  });
}
