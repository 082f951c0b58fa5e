import { connect, createServer, type Server, type Socket } from "node:net";

/** What the link lets through at once, in milliseconds of its speed. Larger: fewer timers; smaller: it is more like a wire. */
const BURST_MS = 4;
/** Bytes that wait at the link for their turn; more are left to the sender's own buffers. */
const QUEUE_BYTES = 64 * 1024;

/** A link of so many bytes a millisecond, both ways together and all connections together. Its speed may change at any time. */
export interface ShapedLink {
  /** host:port that stands for the target. */
  readonly address: string;
  setRate(bytesPerMs: number): void;
  close(): Promise<void>;
}

/**
 * A TCP proxy in front of `target` (host:port) that lets bytes through as a token bucket does. It keeps the order and loses nothing. `host`: where it
 * listens, at the target's own port if that is another host than the target's; absent: at any port of this one.
 */
export async function startShapedLink(target: string, bytesPerMs: number, host?: string): Promise<ShapedLink> {
  const link = new TokenBucketLink(bytesPerMs);
  const near = { host: host ?? "127.0.0.1", port: host === undefined ? 0 : portOf(target) };
  const port = await link.listen(target, near);
  return Object.assign(link, { address: `${near.host}:${port}` });
}

function portOf(address: string): number {
  return Number(address.split(":")[1]);
}

interface Lane {
  readonly from: Socket;
  readonly to: Socket;
  readonly waiting: Buffer[];
  waitingBytes: number;
  isEnded: boolean;
}

class TokenBucketLink {
  #bytesPerMs: number;
  #credit = 0;
  #filledAt = performance.now();
  #timer: NodeJS.Timeout | undefined;
  #server: Server | undefined;
  readonly #lanes = new Set<Lane>();

  constructor(bytesPerMs: number) {
    this.#bytesPerMs = bytesPerMs;
  }

  listen(target: string, near: { readonly host: string; readonly port: number }): Promise<number> {
    const [host = ""] = target.split(":");
    const server = createServer({ noDelay: true, allowHalfOpen: true }, (near) => {
      // One side may have ended while the other's bytes still wait here.
      const far = connect({ host, port: portOf(target), noDelay: true, allowHalfOpen: true });
      this.#carry(near, far);
      this.#carry(far, near);
    });
    this.#server = server;
    return new Promise((resolve, reject) => {
      server.once("error", reject).listen(near.port, near.host, () => {
        const address = server.address();
        resolve(typeof address === "object" && address !== null ? address.port : 0);
      });
    });
  }

  setRate(bytesPerMs: number): void {
    this.#fill();
    this.#bytesPerMs = bytesPerMs;
    this.#credit = Math.min(this.#credit, this.#burst);
    this.#pump();
  }

  async close(): Promise<void> {
    clearTimeout(this.#timer);
    for (const { from, to } of this.#lanes) {
      from.destroy();
      to.destroy();
    }
    await new Promise((resolve) => this.#server?.close(resolve));
  }

  get #burst(): number {
    return Math.max(1_500, BURST_MS * this.#bytesPerMs);
  }

  #carry(from: Socket, to: Socket): void {
    const lane: Lane = { from, to, waiting: [], waitingBytes: 0, isEnded: false };
    this.#lanes.add(lane);
    from.on("data", (data) => {
      lane.waiting.push(data);
      lane.waitingBytes += data.length;
      if (lane.waitingBytes >= QUEUE_BYTES) from.pause();
      this.#pump();
    });
    from.on("end", () => {
      lane.isEnded = true;
      this.#pump();
    });
    from.on("error", () => to.destroy());
    from.on("close", () => {
      if (!lane.isEnded) to.destroy();
    });
    to.on("drain", () => this.#pump());
    to.on("close", () => {
      from.destroy();
      this.#lanes.delete(lane);
    });
  }

  #fill(): void {
    const now = performance.now();
    this.#credit = Math.min(this.#burst, this.#credit + (now - this.#filledAt) * this.#bytesPerMs);
    this.#filledAt = now;
  }

  /** Lets through what there is credit for, lane after lane, and comes back when there will be more. */
  #pump(): void {
    this.#fill();
    let isWaiting = false;
    for (const lane of this.#lanes) {
      while (lane.waiting.length > 0 && this.#credit >= 1 && !lane.to.writableNeedDrain) {
        const [head] = lane.waiting as [Buffer];
        const part = head.subarray(0, Math.floor(this.#credit));
        if (part.length === head.length) lane.waiting.shift();
        else lane.waiting[0] = head.subarray(part.length);
        this.#credit -= part.length;
        lane.waitingBytes -= part.length;
        lane.to.write(part);
      }
      if (lane.waiting.length > 0) isWaiting = true;
      else if (lane.isEnded && !lane.to.writableEnded) lane.to.end();
      if (lane.waitingBytes < QUEUE_BYTES && lane.from.isPaused()) lane.from.resume();
    }
    if (!isWaiting || this.#timer !== undefined) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#pump();
    }, 1);
  }
}
