import { KvasirError } from "@kvasir/core";
import { type DescribeClusterResponse, type Placement, RouterService } from "@kvasir/proto";
import { createClient, metadataFromContext, PLAIN, type RpcClient, type Transport } from "@kvasir/rpc";
import type { State } from "@kvasir/state";
import type { Context } from "@opentelemetry/api";
import { peerError } from "./peer-error.ts";

const POLL_MS = 500;
const POLL_DEADLINE_MS = 2_000;
const CLOSE_GRACE_MS = 1_000;

export interface PlaceStart {
  readonly requestId: string;
  readonly model: string;
  readonly promptTokenCount: number;
  readonly maxTokens: number;
  readonly choiceCount: number;
  readonly tenantScope: Uint8Array;
  /** Workers that failed the request before this line was opened. */
  readonly excludedWorkerIds: readonly string[];
}

/** One request's line to the router, open as long as the request lives. */
export interface PlaceLine {
  /** The first placement, or after `retry` the next. Rejects with the router's reason. */
  next(): Promise<Placement>;
  /** `keptPrefillWorkerId`: may still hold what it computed; empty: none does. */
  retry(excludedWorkerIds: readonly string[], keptPrefillWorkerId: string): void;
  firstToken(): void;
  /** The router is gone or has refused; nothing more will be answered here. */
  readonly isOver: boolean;
  /** Ends the request's accounting. */
  close(): void;
}

/** Finds the router through the cluster's state and talks to it. */
export class RouterLink {
  readonly #transport: Transport;
  readonly #unwatch: () => void;
  readonly #poll: NodeJS.Timeout;
  #client: RpcClient<typeof RouterService> | undefined;
  #address = "";
  #known: readonly string[] = [];
  #cluster: DescribeClusterResponse | undefined;

  constructor(state: Pick<State, "watch">, transport: Transport = PLAIN) {
    this.#transport = transport;
    this.#unwatch = state.watch("router", (routers) => this.#learn(routers.map((router) => router.address)));
    this.#poll = setInterval(() => void this.refresh(), POLL_MS);
  }

  /** The cluster as last told by the router; undefined when there is none or it does not answer. */
  get cluster(): DescribeClusterResponse | undefined {
    return this.#cluster;
  }

  async refresh(): Promise<DescribeClusterResponse | undefined> {
    const client = this.#client;
    const cluster = await client?.describeCluster({}, { deadlineMs: POLL_DEADLINE_MS }).catch(() => undefined);
    if (client !== this.#client) return this.#cluster;
    this.#cluster = cluster;
    // A router that was killed is listed until its record expires: another one that is listed may answer.
    if (cluster === undefined) this.#use(this.#known[(this.#known.indexOf(this.#address) + 1) % this.#known.length]);
    return cluster;
  }

  /** `deadlineMs`: the longest that the line may live. */
  place(start: PlaceStart, context: Context, deadlineMs: number): PlaceLine {
    if (this.#client === undefined) {
      throw new KvasirError({ reason: "unavailable", message: "no router is known; start one", retryAfterMs: 1_000 });
    }
    const stream = this.#client.place({ metadata: metadataFromContext(context), deadlineMs });
    let isOver = false;
    let answer = Promise.withResolvers<Placement>();
    // A router that is lost after it placed does not disturb the request; nobody then waits for an answer.
    answer.promise.catch(() => undefined);
    stream.on("data", (response) => {
      if (response.kind.case === "placed") answer.resolve(response.kind.value);
    });
    stream.on("error", (error) => {
      isOver = true;
      answer.reject(peerError(error));
    });
    stream.on("end", () => {
      isOver = true;
      answer.reject(new KvasirError({ reason: "unavailable", message: "the router ended the placement" }));
    });
    const value = { ...start, excludedWorkerIds: [...start.excludedWorkerIds] };
    stream.write({ kind: { case: "start", value } });
    return {
      next: () => answer.promise,
      retry(excludedWorkerIds, keptPrefillWorkerId) {
        answer = Promise.withResolvers<Placement>();
        answer.promise.catch(() => undefined);
        if (isOver) answer.reject(new KvasirError({ reason: "unavailable", message: "the router is lost; try again" }));
        else {
          const value = { excludedWorkerIds: [...excludedWorkerIds], keptPrefillWorkerId };
          stream.write({ kind: { case: "retry", value } });
        }
      },
      firstToken() {
        if (!isOver) stream.write({ kind: { case: "firstToken", value: {} } });
      },
      get isOver() {
        return isOver;
      },
      close() {
        if (isOver) return;
        stream.end();
        // The router answers the end with its own; one that does not is cut off.
        const cut = setTimeout(() => stream.cancel(), CLOSE_GRACE_MS).unref();
        stream.once("status", () => clearTimeout(cut));
      },
    };
  }

  close(): void {
    clearInterval(this.#poll);
    this.#unwatch();
    this.#client?.channel.close();
  }

  #learn(addresses: readonly string[]): void {
    this.#known = addresses;
    if (!addresses.includes(this.#address)) this.#use(addresses[0]);
  }

  #use(address: string | undefined): void {
    if (address === undefined || address === this.#address) return;
    this.#client?.channel.close();
    this.#address = address;
    this.#client = createClient(RouterService, address, this.#transport);
    void this.refresh();
  }
}
