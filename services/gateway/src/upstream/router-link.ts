import { KvasirError } from "@kvasir/core";
import { type DescribeClusterResponse, type Placement, RouterService } from "@kvasir/proto";
import { createClient, errorFromService, metadataFromContext, type RpcClient } from "@kvasir/rpc";
import type { State } from "@kvasir/state";
import type { Context } from "@opentelemetry/api";

const POLL_MS = 500;
const POLL_DEADLINE_MS = 2_000;
const CLOSE_GRACE_MS = 1_000;

export interface PlaceStart {
  readonly requestId: string;
  readonly model: string;
  readonly promptTokenCount: number;
  readonly maxTokens: number;
  readonly tenantScope: Uint8Array;
}

/** One request's line to the router, open as long as the request lives. */
export interface PlaceLine {
  /** The first placement, or after `retry` the next. Rejects with the router's reason. */
  next(): Promise<Placement>;
  retry(excludedWorkerIds: readonly string[]): void;
  firstToken(): void;
  /** Ends the request's accounting. */
  close(): void;
}

/** Finds the router through the cluster's state and talks to it. */
export class RouterLink {
  readonly #unwatch: () => void;
  readonly #poll: NodeJS.Timeout;
  #client: RpcClient<typeof RouterService> | undefined;
  #address = "";
  #cluster: DescribeClusterResponse | undefined;

  constructor(state: Pick<State, "watch">) {
    this.#unwatch = state.watch("router", (routers) => this.#use(routers[0]?.address));
    this.#poll = setInterval(() => void this.refresh(), POLL_MS);
  }

  /** The cluster as last told by the router; undefined when there is none or it does not answer. */
  get cluster(): DescribeClusterResponse | undefined {
    return this.#cluster;
  }

  async refresh(): Promise<DescribeClusterResponse | undefined> {
    this.#cluster = await this.#client?.describeCluster({}, { deadlineMs: POLL_DEADLINE_MS }).catch(() => undefined);
    return this.#cluster;
  }

  place(start: PlaceStart, context: Context): PlaceLine {
    if (this.#client === undefined) {
      throw new KvasirError({ reason: "unavailable", message: "no router is known; start one", retryAfterMs: 1_000 });
    }
    const stream = this.#client.place({ metadata: metadataFromContext(context) });
    let answer = Promise.withResolvers<Placement>();
    // A router that is lost after it placed does not disturb the request; nobody then waits for an answer.
    answer.promise.catch(() => undefined);
    stream.on("data", (response) => {
      if (response.kind.case === "placed") answer.resolve(response.kind.value);
    });
    stream.on("error", (error) => answer.reject(errorFromService(error)));
    stream.on("end", () => {
      answer.reject(new KvasirError({ reason: "unavailable", message: "the router ended the placement" }));
    });
    stream.write({ kind: { case: "start", value: start } });
    return {
      next: () => answer.promise,
      retry(excludedWorkerIds) {
        answer = Promise.withResolvers<Placement>();
        answer.promise.catch(() => undefined);
        if (stream.destroyed) {
          answer.reject(new KvasirError({ reason: "unavailable", message: "the router is lost" }));
          return;
        }
        stream.write({ kind: { case: "retry", value: { excludedWorkerIds: [...excludedWorkerIds] } } });
      },
      firstToken() {
        if (!stream.destroyed) stream.write({ kind: { case: "firstToken", value: {} } });
      },
      close() {
        stream.end();
        // The router answers the end with its own; one that does not is cut off.
        const cut = setTimeout(() => stream.cancel(), CLOSE_GRACE_MS);
        stream.once("status", () => clearTimeout(cut));
      },
    };
  }

  close(): void {
    clearInterval(this.#poll);
    this.#unwatch();
    this.#client?.channel.close();
  }

  #use(address: string | undefined): void {
    if (address === undefined || address === this.#address) return;
    this.#client?.channel.close();
    this.#address = address;
    this.#client = createClient(RouterService, address);
    void this.refresh();
  }
}
