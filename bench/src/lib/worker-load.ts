import { availableParallelism } from "node:os";
import type { KvAccuracy } from "@kvasir/core";
import { PlacementMode, KvAccuracy as WireAccuracy } from "@kvasir/proto";
import { type ShapedLink, startShapedLink } from "@kvasir/testkit/shaped-link";
import { freshScope, generate, type RunningWorker, refOf } from "@kvasir/worker/testing/harness";
import { DEAF, startRealWorker } from "@kvasir/worker/testing/real-worker";
import { type Loaded, STEP_TOKENS } from "./kv-load.ts";
import { SIDECAR } from "./run.ts";

type RealWorker = Awaited<ReturnType<typeof startRealWorker>>;

const WIRE: Readonly<Record<KvAccuracy, WireAccuracy>> = {
  exact: WireAccuracy.EXACT,
  near: WireAccuracy.NEAR,
  fast: WireAccuracy.FAST,
};
/** The lender's sidecar, as others reach it: the link's near end. */
const LENDER_HOST = "127.0.0.21";
/** A worker lends an eighth of its blocks at most. */
const LENDER_KV_BYTES = 384 * 2 ** 20;
const BORROWER_KV_BYTES = 64 * 2 ** 20;

export interface WorkerPairFacts {
  readonly model: string;
  readonly codecProfile: string;
  readonly blockSize: number;
  readonly kvDtype: string;
  readonly bytesPerToken: number;
  /** The context, a multiple of the block size, and a question of one token. */
  readonly tokenIds: readonly number[];
  /** Of the profile, by their numbers. */
  readonly levelNames: readonly (string | undefined)[];
  /** Bytes a millisecond. */
  readonly rate: number;
}

/** Two workers with their sidecars: one has a context cached, and lends it over a shaped link to the other one. */
export class WorkerPair {
  readonly link: ShapedLink;
  readonly #facts: WorkerPairFacts;
  readonly #lender: RunningWorker;
  readonly #borrower: RealWorker;
  readonly #tenantScope: Uint8Array;
  readonly #stop: () => Promise<void>;
  #levels = new Map<number, number>();
  #wireBytes = 0;
  #fetchedTokenCount = 0;

  static async start(facts: WorkerPairFacts): Promise<WorkerPair> {
    const { model, codecProfile, blockSize, kvDtype } = facts;
    const common = { model, codecProfile, blockSize, kvDtype, stepTokenCount: STEP_TOKENS, binary: SIDECAR };
    const shared = { ...common, threads: availableParallelism() };
    // The link listens on another host at the port that the sidecar is given.
    const probe = await startShapedLink("127.0.0.1:1", facts.rate);
    const port = probe.address.split(":")[1] ?? "";
    await probe.close();
    const link = await startShapedLink(`127.0.0.1:${port}`, facts.rate, LENDER_HOST);
    const behindLink = { transferListen: `127.0.0.1:${port}`, advertiseHost: LENDER_HOST };
    const lender = await startRealWorker("lender", "mixed", { ...shared, ...behindLink, kvBytes: LENDER_KV_BYTES });
    const pair: { it?: WorkerPair } = {};
    const requests = {
      ...DEAF,
      prefixFetched: (_: string, __: string, { tokenCount, bytes }: { tokenCount: number; bytes: number }) =>
        pair.it?.fetched(tokenCount, bytes),
      kvTravelled: (levels: ReadonlyMap<string, { readonly rawBytes: number }>) => pair.it?.travelled(levels),
    };
    const borrower = await startRealWorker("borrower", "mixed", { ...shared, requests, kvBytes: BORROWER_KV_BYTES });
    const stop = async () => {
      await Promise.all([lender.stop(), borrower.stop()]);
      await link.close();
    };
    pair.it = new WorkerPair(facts, link, lender, borrower, stop);
    await pair.it.#prepare();
    return pair.it;
  }

  private constructor(
    facts: WorkerPairFacts,
    link: ShapedLink,
    lender: RunningWorker,
    borrower: RealWorker,
    stop: () => Promise<void>,
  ) {
    this.#facts = facts;
    this.link = link;
    this.#lender = lender;
    this.#borrower = borrower;
    this.#tenantScope = freshScope();
    this.#stop = stop;
  }

  /** The lender has computed the context; the borrower knows what computing takes. */
  async #prepare(): Promise<void> {
    const change = { promptTokenIds: [...this.#facts.tokenIds] };
    const tenantScope = this.#tenantScope;
    for (const decode of [this.#lender, this.#borrower]) {
      const { error } = await generate({ decode, tenantScope, maxTokens: 1, change }).result;
      if (error) throw error;
    }
  }

  fetched(tokenCount: number, bytes: number): void {
    this.#fetchedTokenCount += tokenCount;
    this.#wireBytes += bytes;
  }

  travelled(levels: ReadonlyMap<string, { readonly rawBytes: number }>): void {
    const { levelNames, bytesPerToken } = this.#facts;
    for (const [name, { rawBytes }] of levels) {
      const level = levelNames.indexOf(name);
      this.#levels.set(level, (this.#levels.get(level) ?? 0) + rawBytes / bytesPerToken);
    }
  }

  /** The first token of a request whose context the lender has; all that the borrower had of it is forgotten before. */
  async load(budget: KvAccuracy, objectiveMs: number): Promise<Loaded> {
    const { tokenIds, blockSize } = this.#facts;
    this.#borrower.worker.supervisor.current?.clearCache();
    this.#levels = new Map();
    this.#wireBytes = 0;
    this.#fetchedTokenCount = 0;
    const tokenEnd = tokenIds.length - 1 - ((tokenIds.length - 1) % blockSize);
    const fetch = { holder: refOf(this.#lender), tokenEnd };
    const placement = { mode: PlacementMode.AGGREGATED, decode: refOf(this.#borrower), fetch };
    const change = { promptTokenIds: [...tokenIds], kvAccuracy: WIRE[budget], ttftTargetMs: objectiveMs, placement };
    const begun = performance.now();
    const asked = generate({ decode: this.#borrower, tenantScope: this.#tenantScope, maxTokens: 1, change });
    await asked.firstToken;
    const ms = performance.now() - begun;
    const { error } = await asked.result;
    if (error) throw error;
    const computedTokenCount = tokenEnd - this.#fetchedTokenCount;
    return { ms, wireBytes: this.#wireBytes, computedTokenCount, tokensByLevel: this.#levels };
  }

  stop(): Promise<void> {
    return this.#stop();
  }
}
