import { connect, createServer, type Server, type Socket } from "node:net";

/** Bytes of a piece that is worth corrupting: nearly all of them are KV, and few a message's own. */
const CORRUPTED_BYTES_MIN = 4_096;

/** Ways a link can be. `silent`: what is sent vanishes and nobody is told, as when a cable is pulled. `cut`: connections are reset. */
export type LinkState = "whole" | "silent" | "cut";

export interface Link {
  /** From now on, for connections that there are and that come. `silent` connections stay broken: what was lost of them is lost. */
  set(state: LinkState): void;
  /** The same, as soon as so many more bytes have crossed, both ways together. */
  setAfter(bytes: number, state: LinkState): Promise<void>;
  /** One bit of a large piece is turned over on its way to who dialled, as soon as so many more bytes have crossed. */
  corruptAfter(bytes: number): Promise<void>;
  /** From now on each connection carries at most so much each way; Infinity: as much as it can. */
  pace(bytesPerSecond: number): void;
  close(): Promise<void>;
}

/** A host that is not a process's own: what is dialled there at one of `ports` reaches the same port of 127.0.0.1, while the link is whole. */
export async function startLink(host: string, ports: readonly number[]): Promise<Link> {
  const link = new ProxiedLink();
  await link.listen(host, ports);
  return link;
}

interface Crossing {
  readonly near: Socket;
  readonly far: Socket;
}

class ProxiedLink implements Link {
  #state: LinkState = "whole";
  #bytesPerMs = Number.POSITIVE_INFINITY;
  #planned: { bytesLeft: number; readonly state: LinkState; readonly done: () => void } | undefined;
  #corruption: { bytesLeft: number; readonly done: () => void } | undefined;
  readonly #servers: Server[] = [];
  readonly #crossings = new Set<Crossing>();

  async listen(host: string, ports: readonly number[]): Promise<void> {
    for (const port of ports) {
      const server = createServer({ noDelay: true }, (near) => this.#cross(near, port));
      await new Promise<void>((resolve, reject) => server.once("error", reject).listen(port, host, () => resolve()));
      this.#servers.push(server);
    }
  }

  setAfter(bytes: number, state: LinkState): Promise<void> {
    return new Promise((done) => {
      this.#planned = { bytesLeft: bytes, state, done };
    });
  }

  corruptAfter(bytes: number): Promise<void> {
    return new Promise((done) => {
      this.#corruption = { bytesLeft: bytes, done };
    });
  }

  set(state: LinkState): void {
    this.#state = state;
    this.#planned = undefined;
    for (const { near, far } of this.#crossings) {
      if (state === "cut") {
        near.resetAndDestroy();
        far.resetAndDestroy();
      } else if (state === "silent") {
        // Unread data fills the senders' buffers, as unacknowledged data would.
        near.unpipe(far).pause();
        far.unpipe(near).pause();
      }
    }
  }

  pace(bytesPerSecond: number): void {
    this.#bytesPerMs = bytesPerSecond / 1_000;
  }

  async close(): Promise<void> {
    this.set("cut");
    await Promise.all(this.#servers.map((server) => new Promise((resolve) => server.close(resolve))));
  }

  #cross(near: Socket, port: number): void {
    if (this.#state === "cut") {
      near.resetAndDestroy();
      return;
    }
    const far = connect({ host: "127.0.0.1", port, noDelay: true });
    const crossing = { near, far };
    this.#crossings.add(crossing);
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      from.on("data", (data) => {
        this.#crossed(data.length);
        if (from === far) this.#corrupt(data);
        this.#slowDown(from, data.length);
      });
      // An end is not told either while the link is silent.
      from.on("error", () => to.destroy());
      from.on("close", () => {
        this.#crossings.delete(crossing);
        to.destroy();
      });
      if (this.#state === "whole") from.pipe(to);
      else from.pause();
    }
  }

  /** What was read goes on at once; the next bytes are read when these would have been carried. */
  #slowDown(from: Socket, bytes: number): void {
    const restMs = bytes / this.#bytesPerMs;
    if (restMs < 1) return;
    from.pause();
    setTimeout(() => {
      if (this.#state === "whole") from.resume();
    }, restMs);
  }

  /** What is read is what goes on. */
  #corrupt(data: Buffer): void {
    const planned = this.#corruption;
    if (planned === undefined) return;
    planned.bytesLeft -= data.length;
    if (planned.bytesLeft > 0 || data.length < CORRUPTED_BYTES_MIN) return;
    const middle = data.length >> 1;
    data.writeUInt8(data.readUInt8(middle) ^ 1, middle);
    this.#corruption = undefined;
    planned.done();
  }

  #crossed(bytes: number): void {
    const planned = this.#planned;
    if (planned === undefined) return;
    planned.bytesLeft -= bytes;
    if (planned.bytesLeft > 0) return;
    this.set(planned.state);
    planned.done();
  }
}
