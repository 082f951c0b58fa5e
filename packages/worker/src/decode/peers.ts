import { PrefillService, type RenewResponse } from "@kvasir/proto";
import type { RpcClient, Transport } from "@kvasir/rpc";
import { PeerClients } from "../peer-clients.ts";

/** Prefill workers, as decode workers, and those who fetch, talk to them. */
export class PrefillPeers {
  readonly #clients: PeerClients<typeof PrefillService>;

  constructor(transport: Transport) {
    this.#clients = new PeerClients(PrefillService, transport);
  }

  /** Opens a hand-over call. */
  run(address: string, settings: Parameters<RpcClient<typeof PrefillService>["run"]>[0]) {
    return this.#clients.open(address, (client) => client.run(settings));
  }

  renew(address: string, transferIds: readonly Uint8Array[], deadlineMs: number): Promise<RenewResponse> {
    const client = this.#clients.get(address);
    if (client === undefined) return Promise.reject(new Error(`no transfer comes from ${address}`));
    return client.renew({ transferIds: [...transferIds] }, { deadlineMs });
  }

  close(): void {
    this.#clients.close();
  }
}
