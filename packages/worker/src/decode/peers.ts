import { PrefillService, type RenewResponse } from "@kvasir/proto";
import { createClient, type RpcClient, type Transport } from "@kvasir/rpc";

const IDLE_CLOSE_MS = 60_000;

interface Peer {
  readonly client: RpcClient<typeof PrefillService>;
  calls: number;
  timer?: NodeJS.Timeout;
}

/** Channels to prefill workers, one for each address, closed when unused for a minute. */
export class PrefillPeers {
  readonly #transport: Transport;
  readonly #peers = new Map<string, Peer>();

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /** Opens a hand-over call. The channel lives at least as long as the call. */
  run(address: string, settings: Parameters<RpcClient<typeof PrefillService>["run"]>[0]) {
    const used = this.#at(address);
    clearTimeout(used.timer);
    used.calls++;
    const call = used.client.run(settings);
    call.once("status", () => {
      if (--used.calls > 0) return;
      used.timer = setTimeout(() => {
        this.#peers.delete(address);
        used.client.channel.close();
      }, IDLE_CLOSE_MS);
      used.timer.unref();
    });
    return call;
  }

  renew(address: string, transferIds: readonly Uint8Array[], deadlineMs: number): Promise<RenewResponse> {
    const client = this.#peers.get(address)?.client;
    if (client === undefined) return Promise.reject(new Error(`no transfer comes from ${address}`));
    return client.renew({ transferIds: [...transferIds] }, { deadlineMs });
  }

  #at(address: string): Peer {
    let peer = this.#peers.get(address);
    if (!peer) {
      peer = { client: createClient(PrefillService, address, this.#transport), calls: 0 };
      this.#peers.set(address, peer);
    }
    return peer;
  }

  close(): void {
    for (const peer of this.#peers.values()) {
      clearTimeout(peer.timer);
      peer.client.channel.close();
    }
    this.#peers.clear();
  }
}
