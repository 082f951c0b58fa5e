import type { DescService } from "@bufbuild/protobuf";
import { createClient, type RpcClient, type Transport } from "@kvasir/rpc";

const IDLE_CLOSE_MS = 60_000;

interface Peer<S extends DescService> {
  readonly client: RpcClient<S>;
  calls: number;
  timer?: NodeJS.Timeout;
}

/** Channels to those who offer a service, one for each address, closed when unused for a minute. */
export class PeerClients<S extends DescService> {
  readonly #service: S;
  readonly #transport: Transport;
  readonly #peers = new Map<string, Peer<S>>();

  constructor(service: S, transport: Transport) {
    this.#service = service;
    this.#transport = transport;
  }

  /** Opens a streaming call. The channel lives at least as long as the call. */
  open<C extends { once(event: "status", listener: () => void): unknown }>(
    address: string,
    call: (client: RpcClient<S>) => C,
  ): C {
    const used = this.#at(address);
    clearTimeout(used.timer);
    used.calls++;
    const opened = call(used.client);
    opened.once("status", () => {
      if (--used.calls > 0) return;
      if (this.#peers.get(address) !== used) {
        used.client.channel.close();
        return;
      }
      used.timer = setTimeout(() => {
        this.#peers.delete(address);
        used.client.channel.close();
      }, IDLE_CLOSE_MS);
      used.timer.unref();
    });
    return opened;
  }

  /** The client of an address that a call was opened to lately. */
  get(address: string): RpcClient<S> | undefined {
    return this.#peers.get(address)?.client;
  }

  /**
   * Who does not answer may be behind a connection that is broken and does not know it: keep-alive looks only while calls are under way, and short
   * ones end before that. The next call to the address gets a new connection.
   */
  forget(address: string): void {
    const peer = this.#peers.get(address);
    if (peer === undefined) return;
    this.#peers.delete(address);
    clearTimeout(peer.timer);
    if (peer.calls === 0) peer.client.channel.close();
  }

  close(): void {
    for (const peer of this.#peers.values()) {
      clearTimeout(peer.timer);
      peer.client.channel.close();
    }
    this.#peers.clear();
  }

  #at(address: string): Peer<S> {
    let peer = this.#peers.get(address);
    if (!peer) {
      peer = { client: createClient(this.#service, address, this.#transport), calls: 0 };
      this.#peers.set(address, peer);
    }
    return peer;
  }
}
