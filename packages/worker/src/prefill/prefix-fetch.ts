import { randomBytes } from "node:crypto";
import type { Metadata } from "@grpc/grpc-js";
import { BLOCK_HASH_BYTES, type BlockId, hashBlocks } from "@kvasir/core";
import type { PrefixFetch as FetchPlan, FetchResponse, KvSource, LendingService, WorkerRef } from "@kvasir/proto";
import { errorFromService } from "@kvasir/rpc";
import type { PrefillPeers } from "../decode/peers.ts";
import { Transfer } from "../decode/transfer.ts";
import type { Incarnation } from "../incarnation.ts";
import { Borrowing } from "../lending/borrowing.ts";
import type { PeerClients } from "../peer-clients.ts";
import type { CheckedRequest } from "../request-check.ts";

/** How a fetch ended, once nothing writes into the blocks any more. */
export interface FetchEnd {
  /** Of the prompt, from its beginning, verified and in place. */
  readonly verifiedTokenCount: number;
  readonly bytes: number;
  /** For each whole block that came, whether a store read it from disk; empty where it came from a worker. */
  readonly fromDisk: readonly boolean[];
  /** `late`: computing would have been quicker. Otherwise the reason of the error; undefined when all came. */
  readonly failure: string | undefined;
}

/** Who may have what a prompt lacks. */
export interface FetchPeers {
  readonly workers: PrefillPeers;
  readonly stores: PeerClients<typeof LendingService>;
}

export interface FetchFacts {
  readonly peers: FetchPeers;
  readonly incarnation: Incarnation;
  readonly request: CheckedRequest;
  readonly requestId: string;
  readonly holder: WorkerRef;
  /** The holder is a store. */
  readonly fromStore: boolean;
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
): Pick<FetchFacts, "holder" | "fromStore" | "tokenBegin" | "tokenEnd"> | undefined {
  if (plan?.holder === undefined) return undefined;
  const { promptTokenCount, cachedTokenCount: tokenBegin, blockSize } = facts;
  const end = Math.min(plan.tokenEnd, promptTokenCount - 1);
  const tokenEnd = end - (end % blockSize);
  const { holder, fromStore } = plan;
  return tokenEnd > tokenBegin ? { holder, fromStore, tokenBegin, tokenEnd } : undefined;
}

/** Where a fetch comes from. */
interface Source {
  /** Tells who lends. Resolves when nothing writes. */
  end(how: "received" | "aborted"): Promise<void>;
}

/**
 * Fetches the first tokens of a prompt. From another prefill worker by the same call that hands a prompt over: the holder computes at most its
 * last block, and refuses where more of it is gone. From a store as a loan of blocks: as many as it still has. Whatever ends it, what is verified
 * by then stays.
 */
export class PrefixFetch {
  readonly #ended = Promise.withResolvers<FetchEnd>();
  readonly #facts: FetchFacts;
  readonly #source: Source;
  readonly #timer: NodeJS.Timeout;
  #verifiedTokenCount: number;
  #bytes = 0n;
  #fromDisk: readonly boolean[] = [];
  #isEnding = false;

  constructor(facts: FetchFacts) {
    this.#facts = facts;
    this.#verifiedTokenCount = facts.tokenBegin;
    this.#timer = setTimeout(() => void this.#end("aborted", "late"), facts.withinMs);
    this.#source = facts.fromStore ? this.#fromStore() : this.#fromWorker();
  }

  /** Settles when nothing writes any more. */
  get ended(): Promise<FetchEnd> {
    return this.#ended.promise;
  }

  /** Nobody wants it any more. */
  async stop(): Promise<void> {
    void this.#end("aborted", "cancelled");
    await this.#ended.promise;
  }

  #fromWorker(): Source {
    const { peers, incarnation, request, requestId, holder, metadata, blockIds, tokenBegin, tokenEnd, withinMs } =
      this.#facts;
    const start = {
      requestId,
      promptTokenIds: request.promptTokenIds.slice(0, tokenEnd),
      sampling: { maxTokens: 1 },
      tenantScope: request.tenantScope,
      expectedEpoch: holder.epoch,
      layoutFingerprint: incarnation.layout.fingerprint,
      lends: true,
    };
    const transferId = randomBytes(16);
    // What is fetched is kept for others and gone on from, as exact as if it had been computed here.
    const wish = { accuracy: "exact", deadlineMs: Math.ceil(withinMs), wantedMs: withinMs } as const;
    const transfer = new Transfer(
      { peers: peers.workers, prefill: holder, transferId, incarnation, metadata, start },
      {
        ticket: (ticket) => {
          if (this.#isExact(ticket.source)) transfer.fetch(ticket, blockIds, tokenBegin, wish);
        },
        heard: () => undefined,
        firstToken: () => undefined,
        fellBack: () => undefined,
        progress: (progress) => this.#progress(progress),
        broken: (error) => void this.#end("aborted", errorFromService(error).reason),
      },
    );
    return { end: (how) => (how === "received" ? transfer.received() : transfer.abort()) };
  }

  #fromStore(): Source {
    const { peers, incarnation, request, holder, metadata, blockIds, tokenBegin, tokenEnd, withinMs } = this.#facts;
    const { kernel, layout } = incarnation;
    const { prefixRoot = new Uint8Array(BLOCK_HASH_BYTES) } = request.reuse;
    const { blockSize } = layout;
    const hashes = hashBlocks(prefixRoot, request.promptTokenIds.slice(0, tokenEnd), blockSize);
    const wanted = hashes.subarray((tokenBegin / blockSize) * BLOCK_HASH_BYTES);
    const { tenantScope } = request;
    const borrowing = new Borrowing(
      { lenders: peers.stores, lender: holder, kernel, metadata, tenantScope, hashes: wanted, tokenBegin, blockSize },
      {
        lent: (loan) => {
          this.#fromDisk = loan.fromDisk;
          if (this.#isExact(loan.source)) borrowing.fetch(loan, blockIds, Math.ceil(withinMs));
        },
        progress: (progress) => this.#progress(progress),
        broken: (error) => void this.#end("aborted", errorFromService(error).reason),
      },
    );
    return { end: () => borrowing.end() };
  }

  /** Other elements than those computed here would make the rest of the prompt approximate. */
  #isExact(source: KvSource | undefined): boolean {
    const theirs = source?.layout?.exactFingerprint ?? new Uint8Array();
    const isExact = Buffer.compare(theirs, this.#facts.incarnation.layout.exactFingerprint) === 0;
    if (!isExact) void this.#end("aborted", "layout_mismatch");
    return isExact;
  }

  #progress({
    verifiedTokenEnd,
    dataBytes,
    complete,
  }: Pick<FetchResponse, "verifiedTokenEnd" | "dataBytes" | "complete">): void {
    this.#verifiedTokenCount = Math.max(this.#verifiedTokenCount, verifiedTokenEnd);
    this.#bytes = dataBytes;
    if (complete) void this.#end("received", undefined);
  }

  async #end(how: "received" | "aborted", failure: string | undefined): Promise<void> {
    if (this.#isEnding) return;
    this.#isEnding = true;
    clearTimeout(this.#timer);
    // A sidecar that is gone writes nothing either.
    await this.#source.end(how).catch(() => undefined);
    const { tokenBegin, incarnation } = this.#facts;
    const blockCount = Math.floor((this.#verifiedTokenCount - tokenBegin) / incarnation.layout.blockSize);
    this.#ended.resolve({
      verifiedTokenCount: this.#verifiedTokenCount,
      bytes: Number(this.#bytes),
      fromDisk: this.#fromDisk.slice(0, blockCount),
      failure,
    });
  }
}
