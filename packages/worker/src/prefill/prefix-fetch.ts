import { randomBytes } from "node:crypto";
import type { Metadata } from "@grpc/grpc-js";
import type { BlockId } from "@kvasir/core";
import type { PrefixFetch as FetchPlan, WorkerRef } from "@kvasir/proto";
import { errorFromService } from "@kvasir/rpc";
import type { PrefillPeers } from "../decode/peers.ts";
import { Transfer } from "../decode/transfer.ts";
import type { Incarnation } from "../incarnation.ts";
import type { CheckedRequest } from "../request-check.ts";

/** How a fetch ended, once nothing writes into the blocks any more. */
export interface FetchEnd {
  /** Of the prompt, from its beginning, verified and in place. */
  readonly verifiedTokenCount: number;
  readonly bytes: number;
  /** `late`: computing would have been quicker. Otherwise the reason of the error; undefined when all came. */
  readonly failure: string | undefined;
}

export interface FetchFacts {
  readonly peers: PrefillPeers;
  readonly incarnation: Incarnation;
  readonly request: CheckedRequest;
  readonly requestId: string;
  readonly holder: WorkerRef;
  /** The prompt's, in order. */
  readonly blockIds: readonly BlockId[];
  /** First token wanted; a multiple of the block size. */
  readonly tokenBegin: number;
  /** One past the last; a multiple of the block size. */
  readonly tokenEnd: number;
  /** Given up after this. */
  readonly withinMs: number;
  readonly metadata: Metadata;
}

/** The part of a plan that is worth a call: whole blocks beyond what is cached here, and not the prompt's last token. */
export function fetchRange(
  plan: FetchPlan | undefined,
  facts: { readonly promptTokenCount: number; readonly cachedTokenCount: number; readonly blockSize: number },
): { readonly holder: WorkerRef; readonly tokenBegin: number; readonly tokenEnd: number } | undefined {
  if (plan?.holder === undefined) return undefined;
  const { promptTokenCount, cachedTokenCount: tokenBegin, blockSize } = facts;
  const end = Math.min(plan.tokenEnd, promptTokenCount - 1);
  const tokenEnd = end - (end % blockSize);
  return tokenEnd > tokenBegin ? { holder: plan.holder, tokenBegin, tokenEnd } : undefined;
}

/**
 * Fetches the first tokens of a prompt from another prefill worker, by the same call that hands a prompt over: the holder computes at most its last
 * block, and refuses where more of it is gone. Whatever ends it, what is verified by then stays.
 */
export class PrefixFetch {
  readonly #ended = Promise.withResolvers<FetchEnd>();
  readonly #transfer: Transfer;
  readonly #timer: NodeJS.Timeout;
  #verifiedTokenCount: number;
  #bytes = 0n;
  #isEnding = false;

  constructor(facts: FetchFacts) {
    const { peers, incarnation, request, requestId, holder, metadata, blockIds, tokenBegin, tokenEnd } = facts;
    this.#verifiedTokenCount = tokenBegin;
    const start = {
      requestId,
      promptTokenIds: request.promptTokenIds.slice(0, tokenEnd),
      sampling: { maxTokens: 1 },
      tenantScope: request.tenantScope,
      expectedEpoch: holder.epoch,
      layoutFingerprint: incarnation.layout.fingerprint,
      lends: true,
    };
    const { kernel } = incarnation;
    const transferId = randomBytes(16);
    this.#timer = setTimeout(() => void this.#end("abort", "late"), facts.withinMs);
    this.#transfer = new Transfer(
      { peers, prefill: holder, transferId, kernel, metadata, start },
      {
        ticket: (ticket) => {
          const theirs = ticket.source?.layout?.exactFingerprint ?? new Uint8Array();
          // Other elements than those computed here would make the rest of the prompt approximate.
          if (Buffer.compare(theirs, incarnation.layout.exactFingerprint) !== 0)
            void this.#end("abort", "layout_mismatch");
          else this.#transfer.fetch(ticket, blockIds, tokenBegin, Math.ceil(facts.withinMs));
        },
        heard: () => undefined,
        firstToken: () => undefined,
        progress: ({ verifiedTokenEnd, dataBytes, complete }) => {
          this.#verifiedTokenCount = Math.max(this.#verifiedTokenCount, complete ? tokenEnd : verifiedTokenEnd);
          this.#bytes = dataBytes;
          if (complete) void this.#end("received", undefined);
        },
        broken: (error) => void this.#end("abort", errorFromService(error).reason),
      },
    );
  }

  /** Settles when nothing writes any more. */
  get ended(): Promise<FetchEnd> {
    return this.#ended.promise;
  }

  /** Nobody wants it any more. */
  async stop(): Promise<void> {
    void this.#end("abort", "cancelled");
    await this.#ended.promise;
  }

  async #end(how: "received" | "abort", failure: string | undefined): Promise<void> {
    if (this.#isEnding) return;
    this.#isEnding = true;
    clearTimeout(this.#timer);
    // A sidecar that is gone writes nothing either.
    await this.#transfer[how]().catch(() => undefined);
    this.#ended.resolve({ verifiedTokenCount: this.#verifiedTokenCount, bytes: Number(this.#bytes), failure });
  }
}
