import { setTimeout as sleep } from "node:timers/promises";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { type AttachRequestSchema, type MeasuredLinkSchema, RouterService } from "@kvasir/proto";
import { createClient, errorFromService, type RpcClient, type Transport } from "@kvasir/rpc";
import { now } from "../clock.ts";
import type { Log } from "../log.ts";
import { CacheTeller, type ToldCache } from "./cache-teller.ts";
import { LinkTeller, type ToldLinks } from "./link-teller.ts";

/** Load and cache go out at changes, but not more often than this. Larger: placement knows less; smaller: more messages. */
const LOAD_INTERVAL_MIN_MS = 20;
const LOAD_INTERVAL_MAX_MS = 1_000;
/** A router that does not answer must not hold up the end of a worker. */
const GOODBYE_MAX_MS = 500;
const RECONNECT_FIRST_MS = 100;
const RECONNECT_MAX_MS = 1_000;

type AttachKind = NonNullable<MessageInitShape<typeof AttachRequestSchema>["kind"]>;

/** What a router is told of one incarnation of a worker or a store. */
export interface AttachState {
  readonly epoch: bigint;
  readonly hello: AttachKind;
  /** `links`: measured since it was told last. */
  readonly load: (links: readonly MessageInitShape<typeof MeasuredLinkSchema>[]) => AttachKind;
  /** What it measures of the links over which KV comes to it. Absent: none does. */
  readonly links?: ToldLinks;
  /** What it has cached. */
  readonly caches: readonly ToldCache[];
}

/**
 * The line to one router: hello and what the prefix cache holds, then load, the links measured meanwhile and the cache's changes, batched, at
 * changes and at least every second. Connects again, with hello, after every break,
 * for as long as it is not closed; while `state` gives nothing (the sidecar is away) it stays apart.
 */
export class AttachStream {
  readonly #client: RpcClient<typeof RouterService>;
  readonly #state: () => AttachState | undefined;
  readonly #log: Log;
  readonly #routerId: string;
  readonly #onLeader: (token: bigint) => void;
  #stream: ReturnType<RpcClient<typeof RouterService>["attach"]> | undefined;
  #epoch = 0n;
  #cache: { readonly epoch: bigint; readonly teller: CacheTeller } | undefined;
  #links: LinkTeller | undefined;
  #sequence = 0n;
  #sentAtMs = 0;
  #loadTimer: NodeJS.Timeout | undefined;
  #loadTimerAtMs = 0;
  #reconnectTimer: NodeJS.Timeout | undefined;
  #reconnectMs = RECONNECT_FIRST_MS;
  #closed = false;
  #wasAttached = false;

  constructor(
    routerId: string,
    address: string,
    state: () => AttachState | undefined,
    log: Log,
    transport: Transport,
    onLeader: (token: bigint) => void,
  ) {
    this.#onLeader = onLeader;
    this.#routerId = routerId;
    this.#client = createClient(RouterService, address, transport);
    this.#state = state;
    this.#log = log;
    this.#connect();
  }

  /** The load changed. Cheap: at most a timer is moved. */
  loadChanged(): void {
    if (this.#stream) this.#sendWithin(LOAD_INTERVAL_MIN_MS);
  }

  /** Another incarnation, or none: what was said before is void. */
  incarnationChanged(): void {
    if (this.#closed) return;
    this.#drop();
    this.#connect();
  }

  /** Leaves on purpose: resolves when the router has taken note, or soon after if it does not. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#loadTimer);
    clearTimeout(this.#reconnectTimer);
    this.#send({ case: "goodbye", value: {} });
    const stream = this.#stream;
    this.#stream = undefined;
    if (stream) {
      const ended = new Promise((resolve) => stream.once("status", resolve));
      stream.end();
      await Promise.race([ended, sleep(GOODBYE_MAX_MS, undefined, { ref: false })]);
    }
    this.#client.channel.close();
  }

  #connect(): void {
    clearTimeout(this.#reconnectTimer);
    const state = this.#state();
    if (this.#closed || !state) return;
    this.#epoch = state.epoch;
    if (this.#cache?.epoch !== state.epoch) {
      this.#cache = { epoch: state.epoch, teller: new CacheTeller(state.caches) };
    }
    this.#links = state.links && new LinkTeller(state.links);
    this.#sequence = 0n;
    const stream = this.#client.attach();
    this.#stream = stream;
    stream.on("data", ({ leaderToken, wantsCacheSnapshot, refusedPairs }) => {
      for (const { workerId, reason } of refusedPairs) {
        const message = `never placed together with ${workerId}, because KV cannot move between us: ${reason}`;
        this.#log.warn({ router: this.#routerId }, message);
      }
      if (wantsCacheSnapshot && this.#stream === stream) this.#sendCache(this.#cache?.teller.snapshot() ?? []);
      if (leaderToken > 0n) this.#onLeader(leaderToken);
      if (!this.#wasAttached) this.#log.info({ router: this.#routerId }, "attached to the router");
      this.#wasAttached = true;
      this.#reconnectMs = RECONNECT_FIRST_MS;
    });
    stream.on("error", (error) => this.#lost(stream, errorFromService(error).message));
    stream.on("end", () => this.#lost(stream, "the router ended the stream"));
    this.#send(state.hello);
    this.#sendCache(this.#cache.teller.snapshot());
    this.#sendLoad();
  }

  #lost(stream: unknown, message: string): void {
    if (this.#stream !== stream || this.#closed) return;
    if (this.#wasAttached) this.#log.warn({ router: this.#routerId }, `detached from the router: ${message}`);
    this.#wasAttached = false;
    this.#drop();
    this.#reconnectTimer = setTimeout(() => this.#connect(), this.#reconnectMs);
    this.#reconnectMs = Math.min(2 * this.#reconnectMs, RECONNECT_MAX_MS);
  }

  #drop(): void {
    clearTimeout(this.#loadTimer);
    this.#loadTimer = undefined;
    const stream = this.#stream;
    this.#stream = undefined;
    stream?.cancel();
  }

  #sendLoad(): void {
    clearTimeout(this.#loadTimer);
    this.#loadTimer = undefined;
    const load = this.#state()?.load(this.#links?.news(now()) ?? []);
    this.#sendCache(this.#cache?.teller.changes() ?? []);
    if (load) this.#send(load);
    this.#sendWithin(LOAD_INTERVAL_MAX_MS);
  }

  #sendCache(events: ReturnType<CacheTeller["changes"]>): void {
    for (const value of events) this.#send({ case: "cache", value });
  }

  /** Arranges that load goes out this long after the last time, or sooner if that is arranged already. */
  #sendWithin(intervalMs: number): void {
    const atMs = this.#sentAtMs + intervalMs;
    if (this.#loadTimer && this.#loadTimerAtMs <= atMs) return;
    clearTimeout(this.#loadTimer);
    this.#loadTimerAtMs = atMs;
    this.#loadTimer = setTimeout(() => this.#sendLoad(), Math.max(0, atMs - performance.now()));
  }

  #send(kind: AttachKind): void {
    if (!this.#stream) return;
    this.#sequence += 1n;
    this.#sentAtMs = performance.now();
    this.#stream.write({ epoch: this.#epoch, sequence: this.#sequence, kind });
  }
}
