import { PLAIN, type Transport } from "@kvasir/rpc";
import type { Log } from "../log.ts";
import { type AttachState, AttachStream } from "./attach-stream.ts";

export interface RouterRecord {
  readonly routerId: string;
  readonly address: string;
}

/** One attach stream for each router that membership names. */
export class AttachClient {
  readonly #state: () => AttachState | undefined;
  readonly #log: Log;
  readonly #transport: Transport;
  readonly #onLeader: (token: bigint) => void;
  readonly #streams = new Map<string, { readonly address: string; readonly stream: AttachStream }>();

  constructor(
    state: () => AttachState | undefined,
    log: Log,
    transport: Transport = PLAIN,
    onLeader: (token: bigint) => void = () => undefined,
  ) {
    this.#state = state;
    this.#log = log;
    this.#transport = transport;
    this.#onLeader = onLeader;
  }

  /** The routers there are now: new ones are attached to, those gone are left. */
  setRouters(routers: readonly RouterRecord[]): void {
    const addresses = new Map(routers.map(({ routerId, address }) => [routerId, address]));
    for (const [routerId, { address, stream }] of this.#streams) {
      if (addresses.get(routerId) === address) continue;
      void stream.close();
      this.#streams.delete(routerId);
    }
    for (const [routerId, address] of addresses) {
      if (this.#streams.has(routerId)) continue;
      const stream = new AttachStream(routerId, address, this.#state, this.#log, this.#transport, this.#onLeader);
      this.#streams.set(routerId, { address, stream });
    }
  }

  loadChanged(): void {
    for (const { stream } of this.#streams.values()) stream.loadChanged();
  }

  incarnationChanged(): void {
    for (const { stream } of this.#streams.values()) stream.incarnationChanged();
  }

  async close(): Promise<void> {
    const streams = [...this.#streams.values()];
    this.#streams.clear();
    await Promise.all(streams.map(({ stream }) => stream.close()));
  }
}
