import type { TokenSpan } from "./token-span.ts";

/** What came within this time tells the link's speed now. Larger: steadier; smaller: a change is seen sooner. */
const WINDOW_MS = 120;
/** From the first request on an idle link until its silence says something: a call's way there and back on a busy machine. */
const GRACE_MS = 50;

/** A call for some tokens' KV. */
export interface Pull extends TokenSpan {
  readonly wireBytes: number;
  receivedBytes: number;
}

/** The pulls of one load that are on their way, and what the link carries of them now. */
export class UnderWay {
  /** By their first tokens. */
  readonly #pulls = new Map<number, Pull>();
  /** What came when, of the last moments. */
  #receipts: { readonly atMs: number; readonly bytes: number }[] = [];
  #busySinceMs = 0;

  get count(): number {
    return this.#pulls.size;
  }

  /** Encoded, still to come. */
  get queuedBytes(): number {
    return this.inOrder().reduce((sum, pull) => sum + remainingBytes(pull), 0);
  }

  at(begin: number): Pull | undefined {
    return this.#pulls.get(begin);
  }

  /** In the order of the text. */
  inOrder(): readonly Pull[] {
    return [...this.#pulls.values()].sort((a, b) => a.begin - b.begin);
  }

  begin(span: TokenSpan, wireBytes: number, nowMs: number): void {
    if (this.#pulls.size === 0) this.#busySinceMs = nowMs;
    this.#pulls.set(span.begin, { ...span, wireBytes, receivedBytes: 0 });
  }

  /** So many bytes of it have come. */
  received(begin: number, bytes: number, nowMs: number): void {
    const pull = this.#pulls.get(begin);
    if (pull === undefined || bytes <= pull.receivedBytes) return;
    this.#receipts.push({ atMs: nowMs, bytes: bytes - pull.receivedBytes });
    pull.receivedBytes = bytes;
  }

  /** It has arrived, or is not waited for any more. */
  end(begin: number): Pull | undefined {
    const pull = this.#pulls.get(begin);
    this.#pulls.delete(begin);
    return pull;
  }

  /** Bytes a millisecond; undefined until the link has been busy for a while. One that is silent is the slower the longer it is. */
  speedAt(nowMs: number): number | undefined {
    const heardAtMs = this.#receipts.at(-1)?.atMs ?? 0;
    const sinceMs = Math.max(this.#busySinceMs, Math.min(nowMs - WINDOW_MS, heardAtMs));
    const ms = nowMs - sinceMs;
    if (this.#pulls.size === 0 || ms < GRACE_MS) return undefined;
    const recent = this.#receipts.filter(({ atMs }) => atMs > sinceMs);
    const bytes = recent.reduce((sum, receipt) => sum + receipt.bytes, 0);
    if (recent.length > 0) this.#receipts = recent;
    return (bytes + Math.min(HALF_RECEIVED_BYTES, this.queuedBytes / 2)) / ms;
  }
}

/** Nothing is told of a frame before its last byte: some of one is always there. */
const HALF_RECEIVED_BYTES = 32 * 1024;

/** A guess of the last bytes stays, since KV is in place only when it is decoded. */
export function remainingBytes({ wireBytes, receivedBytes }: Pull): number {
  return Math.max(wireBytes - receivedBytes, wireBytes / 100);
}
