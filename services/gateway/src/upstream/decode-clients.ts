import { DecodeService } from "@kvasir/proto";
import { createClient, PLAIN, type RpcClient, type Transport } from "@kvasir/rpc";

/** More workers than a router places on in practice; the one used least recently is dropped. */
const CLIENTS_MAX = 1_024;

/** One channel for each decode worker, kept. */
export class DecodeClients {
  readonly #transport: Transport;
  readonly #clients = new Map<string, RpcClient<typeof DecodeService>>();

  constructor(transport: Transport = PLAIN) {
    this.#transport = transport;
  }

  at(address: string): RpcClient<typeof DecodeService> {
    const known = this.#clients.get(address);
    if (known !== undefined) {
      this.#clients.delete(address);
      this.#clients.set(address, known);
      return known;
    }
    const client = createClient(DecodeService, address, this.#transport);
    this.#clients.set(address, client);
    const [oldest] = this.#clients.keys();
    if (this.#clients.size > CLIENTS_MAX && oldest !== undefined) {
      this.#clients.get(oldest)?.channel.close();
      this.#clients.delete(oldest);
    }
    return client;
  }

  close(): void {
    for (const client of this.#clients.values()) client.channel.close();
    this.#clients.clear();
  }
}
