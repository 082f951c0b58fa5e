import { KvasirError, type RequestOutcome } from "@kvasir/core";
import {
  type DescribeClusterResponse,
  type KvAccuracy,
  type Placement,
  RouterService,
  type ServiceClass,
} from "@kvasir/proto";
import { createClient, metadataFromContext, PLAIN, type RpcClient, type Transport } from "@kvasir/rpc";
import type { State } from "@kvasir/state";
import type { Context } from "@opentelemetry/api";
import { peerError } from "./peer-error.ts";

const POLL_MS = 500;
/** While no router leads. */
const SEEK_MS = 100;
const POLL_DEADLINE_MS = 2_000;
const CLOSE_GRACE_MS = 1_000;

export interface PlaceStart {
  readonly requestId: string;
  readonly model: string;
  readonly promptTokenCount: number;
  readonly maxTokens: number;
  readonly choiceCount: number;
  readonly tenantScope: Uint8Array;
  /** Whose share it takes, 16 bytes. */
  readonly tenant: Uint8Array;
  readonly tenantWeight: number;
  readonly serviceClass: ServiceClass;
  readonly priority: number;
  /** Of its conversation and of its kind of prompt; empty: of none. */
  readonly sessionKey: Uint8Array;
  readonly promptClass: Uint8Array;
  /** From now to the first token; 0: whenever. */
  readonly ttftTargetMs: number;
  /** Mean gap between tokens; 0: any. */
  readonly tbtTargetMs: number;
  readonly mayBeLate: boolean;
  /** Least exact KV that will do. */
  readonly kvAccuracy: KvAccuracy;
  /** Workers that failed the request before this line was opened. */
  readonly excludedWorkerIds: readonly string[];
  /** Of the prompt's full blocks, for each layout of the cluster. */
  readonly promptHashes: readonly PromptHashes[];
}

/** Hashes of a prompt's full blocks in one layout, 16 bytes each. */
export interface PromptHashes extends KvLayoutKey {
  readonly hashes: Uint8Array;
}

/** What block hashes depend on beside tenant and text. */
export interface KvLayoutKey {
  readonly exactFingerprint: Uint8Array;
  readonly blockSize: number;
}

/** One request's line to the router, open as long as the request lives. */
export interface PlaceLine {
  /** The first placement, or after `retry` the next. Rejects with the router's reason. */
  next(): Promise<Placement>;
  /** `keptPrefillWorkerId`: may still hold what it computed; empty: none does. */
  retry(excludedWorkerIds: readonly string[], keptPrefillWorkerId: string): void;
  firstToken(): void;
  /** The request ran to its end; what its answers were like. */
  finished(outcome: RequestOutcome): void;
  /** The router is gone, has refused, or leads no more; nothing more is to be asked here. */
  readonly isOver: boolean;
  /** Ends the request's accounting. */
  close(): void;
}

/** Finds the routers through the cluster's state, and talks to the one that leads. */
export class RouterLink {
  readonly #transport: Transport;
  readonly #unwatch: () => void;
  readonly #clients = new Map<string, RpcClient<typeof RouterService>>();
  /** Answers of the routers that answer, by address. */
  readonly #answers = new Map<string, DescribeClusterResponse>();
  /** Questions under way. */
  readonly #asked = new Map<string, Promise<void>>();
  /** Lines that wait for a placement, and the routers that they wait for. */
  readonly #waiting = new Map<(error: KvasirError) => void, string>();
  #poll: NodeJS.Timeout | undefined;
  #isClosed = false;

  constructor(state: Pick<State, "watch">, transport: Transport = PLAIN) {
    this.#transport = transport;
    this.#unwatch = state.watch("router", (routers) => this.#learn(routers.map((router) => router.address)));
    this.#pollLater();
  }

  /** The cluster as last told by the router that leads; undefined when none does, or it does not answer. */
  get cluster(): DescribeClusterResponse | undefined {
    return this.#answers.get(this.#leader ?? "");
  }

  /** The different layouts of a model's workers. */
  layoutsOf(model: string): readonly KvLayoutKey[] {
    const layouts = new Map<string, KvLayoutKey>();
    for (const { hello } of this.cluster?.workers ?? []) {
      if (hello?.model !== model || hello.layout === undefined) continue;
      const { exactFingerprint, blockSize } = hello.layout;
      const key = `${Buffer.from(exactFingerprint).toString("hex")} ${blockSize}`;
      layouts.set(key, { exactFingerprint, blockSize });
    }
    return [...layouts.values()];
  }

  /** Asks every router anew. */
  async refresh(): Promise<DescribeClusterResponse | undefined> {
    await Promise.all([...this.#clients].map(([address, client]) => this.#ask(address, client)));
    return this.cluster;
  }

  /** `deadlineMs`: the longest that the line may live. Unavailable when no router leads. */
  place(start: PlaceStart, context: Context, deadlineMs: number): PlaceLine {
    const address = this.#leader;
    const client = this.#clients.get(address ?? "");
    if (address === undefined || client === undefined) {
      const message = this.#clients.size > 0 ? "no router leads; try again" : "no router is known; start one";
      throw new KvasirError({ reason: "unavailable", message, retryAfterMs: 1_000 });
    }
    const stream = client.place({ metadata: metadataFromContext(context), deadlineMs });
    let isOver = false;
    const ask = (): PromiseWithResolvers<Placement> => {
      const asked = Promise.withResolvers<Placement>();
      this.#waiting.set(asked.reject, address);
      // A router that is lost after it placed does not disturb the request; nobody then waits for an answer.
      asked.promise.catch(() => undefined).finally(() => this.#waiting.delete(asked.reject));
      return asked;
    };
    const leads = (): boolean => this.#leader === address;
    let answer = ask();
    stream.on("data", (response) => {
      if (response.kind.case === "placed") answer.resolve(response.kind.value);
    });
    stream.on("error", (error) => {
      isOver = true;
      void this.refresh();
      answer.reject(peerError(error));
    });
    stream.on("end", () => {
      isOver = true;
      answer.reject(new KvasirError({ reason: "unavailable", message: "the router ended the placement" }));
    });
    const value = {
      ...start,
      excludedWorkerIds: [...start.excludedWorkerIds],
      promptHashes: start.promptHashes.map((entry) => ({ ...entry })),
    };
    stream.write({ kind: { case: "start", value } });
    return {
      next: () => answer.promise,
      retry(excludedWorkerIds, keptPrefillWorkerId) {
        answer = ask();
        if (isOver) answer.reject(new KvasirError({ reason: "unavailable", message: "the router is lost; try again" }));
        else {
          const value = { excludedWorkerIds: [...excludedWorkerIds], keptPrefillWorkerId };
          stream.write({ kind: { case: "retry", value } });
        }
      },
      firstToken() {
        if (!isOver) stream.write({ kind: { case: "firstToken", value: {} } });
      },
      finished(outcome) {
        if (!isOver) stream.write({ kind: { case: "finished", value: { ...outcome } } });
      },
      get isOver() {
        return isOver || !leads();
      },
      close: () => {
        this.#waiting.delete(answer.reject);
        if (isOver) return;
        stream.end();
        // The router answers the end with its own; one that does not is cut off.
        const cut = setTimeout(() => stream.cancel(), CLOSE_GRACE_MS).unref();
        stream.once("status", () => clearTimeout(cut));
      },
    };
  }

  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#poll);
    this.#unwatch();
    for (const client of this.#clients.values()) client.channel.close();
  }

  /** The highest token leads: whoever has a lower one does not know yet that it was followed. */
  get #leader(): string | undefined {
    let leader: string | undefined;
    let highest = 0n;
    for (const [address, { leaderToken }] of this.#answers) {
      if (leaderToken > highest) [leader, highest] = [address, leaderToken];
    }
    return leader;
  }

  /** At most one question to each router at a time: one that hangs delays no other. */
  #ask(address: string, client: RpcClient<typeof RouterService>): Promise<void> {
    const underWay = this.#asked.get(address);
    if (underWay !== undefined) return underWay;
    const ask = async (): Promise<void> => {
      const answer = await client.describeCluster({}, { deadlineMs: POLL_DEADLINE_MS }).catch(() => undefined);
      this.#asked.delete(address);
      if (this.#clients.get(address) !== client) return;
      if (answer === undefined) this.#answers.delete(address);
      else this.#answers.set(address, answer);
      this.#leaderMayHaveChanged();
    };
    const asked = ask();
    this.#asked.set(address, asked);
    return asked;
  }

  /** Whoever waits for a router that leads no more would wait for nothing: one that hangs does not even end the line. */
  #leaderMayHaveChanged(): void {
    const leader = this.#leader;
    if (leader === undefined) return;
    for (const [reject, address] of this.#waiting) {
      if (address !== leader) reject(new KvasirError({ reason: "unavailable", message: "another router leads now" }));
    }
  }

  #pollLater(): void {
    if (this.#isClosed) return;
    clearTimeout(this.#poll);
    const again = () => {
      void this.refresh();
      this.#pollLater();
    };
    this.#poll = setTimeout(again, this.#leader === undefined ? SEEK_MS : POLL_MS);
  }

  #learn(addresses: readonly string[]): void {
    for (const [address, client] of this.#clients) {
      if (addresses.includes(address)) continue;
      client.channel.close();
      this.#clients.delete(address);
      this.#answers.delete(address);
      this.#asked.delete(address);
    }
    for (const address of addresses) {
      if (!this.#clients.has(address)) {
        this.#clients.set(address, createClient(RouterService, address, this.#transport));
      }
    }
    void this.refresh();
  }
}
