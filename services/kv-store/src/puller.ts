import { randomBytes } from "node:crypto";
import { type BlockRun, KvasirError, PullQueue, type PullQueueOptions } from "@kvasir/core";
import type { LendingService, LendResponse, Loan } from "@kvasir/proto";
import { errorFromService, type RpcClient } from "@kvasir/rpc";
import { now, type PeerClients } from "@kvasir/worker";
import type { StoreMeter } from "./metrics.ts";
import type { StoreKernel } from "./store-kernel.ts";
import type { FollowedWorker } from "./worker-followers.ts";

/** Longest wait for a worker's answer to a loan. Larger: slow workers get through; smaller: a hung one holds fewer pulls up. */
const LOAN_WAIT_MS = 5_000;

export interface PullerFacts {
  readonly queue: PullQueueOptions;
  readonly kernel: StoreKernel;
  readonly workers: PeerClients<typeof LendingService>;
  readonly meter: StoreMeter;
  /** Resolves when what was to be removed before is removed. */
  readonly removed: () => Promise<void>;
  /** Unix time at which blocks pulled now end; 0: never. */
  readonly expiresAtUnixMs: () => bigint;
  /** Of a run, so many blocks from the first on came; the others will not, unless nobody knows: the sidecar was asked and gave no answer. */
  readonly settled: (run: BlockRun, storedCount: number, isKnown: boolean) => void;
}

/** Pulls runs of blocks from workers: borrows them, has the sidecar fetch them, and ends the loan, whatever happened. */
export class Puller {
  readonly #facts: PullerFacts;
  readonly #queue: PullQueue;
  readonly #sources = new Map<string, FollowedWorker>();
  #timer: NodeJS.Timeout | undefined;
  #isClosed = false;

  constructor(facts: PullerFacts) {
    this.#facts = facts;
    this.#queue = new PullQueue(facts.queue);
  }

  get waitingBlockCount(): number {
    return this.#queue.waitingBlockCount;
  }

  get pullingBlockCount(): number {
    return this.#queue.blockCount;
  }

  /** Pulls a run as soon as it may. */
  add(source: FollowedWorker, run: BlockRun): void {
    this.#sources.set(source.workerId, source);
    const refused = this.#queue.add(run);
    if (refused.length > 0) this.#facts.settled({ ...run, keys: refused }, 0, true);
    this.#begin();
  }

  /** Nothing can be had from a worker any more. Pulls under way end by themselves. */
  sourceLost(workerId: string): void {
    this.#sources.delete(workerId);
    for (const run of this.#queue.sourceGone(workerId)) this.#facts.settled(run, 0, true);
  }

  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#timer);
  }

  #begin(): void {
    clearTimeout(this.#timer);
    for (let run = this.#isClosed ? undefined : this.#queue.next(now()); run; run = this.#queue.next(now())) {
      void this.#pull(run);
    }
    const nextAt = this.#isClosed ? undefined : this.#queue.nextAt(now());
    if (nextAt !== undefined) this.#timer = setTimeout(() => this.#begin(), Math.ceil((nextAt - now()) / 1e6));
  }

  async #pull(run: BlockRun): Promise<void> {
    const { meter, queue, settled } = this.#facts;
    let storedCount = 0;
    let isKnown = true;
    let failure: string | undefined;
    try {
      const lentCount = await this.#fetch(run, (count) => {
        isKnown = count !== undefined;
        storedCount = count ?? 0;
      });
      failure = lentCount === 0 ? "gone" : storedCount < run.keys.length ? "partial" : undefined;
    } catch (error) {
      failure = errorFromService(error).reason;
    }
    meter.pulled(failure ?? "complete", { blockCount: storedCount, bytes: storedCount * queue.blockBytes });
    this.#queue.ended(run);
    if (this.#isClosed) return;
    settled(run, storedCount, isKnown);
    this.#begin();
  }

  /** Answers with the number of blocks that the worker lent. `stored` is called when the sidecar is asked, and with its answer. */
  async #fetch({ sourceId, tenant, firstBlock, keys }: BlockRun, stored: (count?: number) => void): Promise<number> {
    const { kernel, workers, removed, expiresAtUnixMs } = this.#facts;
    const source = this.#sources.get(sourceId);
    if (source === undefined) throw new KvasirError({ reason: "unavailable", message: `${sourceId} is gone` });
    const tenantScope = Buffer.from(tenant, "hex");
    const call = workers.open(source.address, (client) => client.lend());
    try {
      const hashes = Buffer.concat(keys);
      call.write({
        kind: { case: "start", value: { expectedEpoch: source.hello.epoch, tenantScope, hashes, firstBlock } },
      });
      const loan = await loanOf(call, sourceId);
      if (loan.blockCount === 0 || loan.ticket === undefined || loan.source === undefined) return 0;
      // A key that is being removed must not be taken for the one that comes now.
      await removed();
      const count = Math.min(loan.blockCount, keys.length);
      const request = { leaseId: randomBytes(16), ticket: loan.ticket, source: loan.source, firstBlock, tenantScope };
      const wanted = { keys: Buffer.concat(keys.slice(0, count)), expiresAtUnixMs: expiresAtUnixMs() };
      stored();
      stored(await kernel.ingest({ ...request, ...wanted }));
      return count;
    } finally {
      call.cancel();
    }
  }
}

/** The one answer to a loan. */
function loanOf(call: ReturnType<RpcClient<typeof LendingService>["lend"]>, sourceId: string): Promise<Loan> {
  return new Promise((resolve, reject) => {
    const fail = (message: string) => reject(new KvasirError({ reason: "unavailable", message }));
    const timer = setTimeout(() => fail(`${sourceId} did not answer in ${LOAN_WAIT_MS} ms`), LOAN_WAIT_MS);
    call.on("data", ({ kind }: LendResponse) => {
      if (kind.case === "loan") resolve(kind.value);
    });
    // Also a cancel of our own, once it is over, ends here.
    call.on("error", (error) => reject(errorFromService(error)));
    call.on("end", () => fail(`${sourceId} ended the loan before it began`));
    call.once("status", () => clearTimeout(timer));
  });
}
