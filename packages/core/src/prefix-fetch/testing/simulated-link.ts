import type { CodecLevelFacts } from "../../codec-level/index.ts";
import type { TokenSpan } from "../token-span.ts";

export interface SimulatedPull extends TokenSpan {
  readonly level: number;
  readonly begunMs: number;
  readonly rawBytes: number;
  readonly wireBytes: number;
  readonly encodeMs: number;
  readonly decodeMs: number;
  sentBytes: number;
  firstByteMs: number | undefined;
  sentMs: number | undefined;
}

/** One source's encoder, a link and the receiver's decoder. */
export class SimulatedLink {
  /** On their way, by their first tokens. */
  readonly pulls = new Map<number, SimulatedPull>();
  readonly #levels: readonly CodecLevelFacts[];
  readonly #bytesPerToken: number;

  constructor(levels: readonly CodecLevelFacts[], bytesPerToken: number) {
    this.#levels = levels;
    this.#bytesPerToken = bytesPerToken;
  }

  pull({ begin, end }: TokenSpan, level: number, nowMs: number): void {
    const rawBytes = (end - begin) * this.#bytesPerToken;
    const { ratio, encodeBytesPerMs, decodeBytesPerMs } = this.#levels[level] as CodecLevelFacts;
    // One thread encodes: the next chunk waits for those before it.
    const begunMs = [...this.pulls.values()].reduce((sum, pull) => Math.max(sum, pull.begunMs + pull.encodeMs), nowMs);
    this.pulls.set(begin, {
      ...{ begin, end, level, begunMs, rawBytes, wireBytes: rawBytes / ratio, sentBytes: 0 },
      encodeMs: rawBytes / encodeBytesPerMs,
      decodeMs: rawBytes / decodeBytesPerMs,
      ...{ firstByteMs: undefined, sentMs: undefined },
    });
  }

  /** A millisecond passes in which the link carries so many bytes; answers with what has arrived. */
  tick(nowMs: number, bytes: number): readonly SimulatedPull[] {
    let credit = bytes;
    let sending = [...this.pulls.values()].filter((pull) => pull.sentMs === undefined);
    while (credit > 1e-6 && sending.length > 0) {
      const share = credit / sending.length;
      const still: SimulatedPull[] = [];
      for (const pull of sending) {
        const encoded = Math.min(1, (nowMs - pull.begunMs) / Math.max(1e-9, pull.encodeMs)) * pull.wireBytes;
        const sent = Math.min(share, Math.max(0, encoded - pull.sentBytes));
        pull.sentBytes += sent;
        credit -= sent;
        if (sent > 0) pull.firstByteMs ??= nowMs;
        if (pull.sentBytes >= pull.wireBytes - 1e-6) pull.sentMs = nowMs;
        else if (sent === share) still.push(pull);
      }
      sending = still;
    }
    const arrived = [...this.pulls.values()].filter(
      // Decoding goes on while bytes come; the last of some ten frames is decoded after the last byte.
      ({ sentMs, begunMs, decodeMs }) =>
        sentMs !== undefined && nowMs >= Math.max(sentMs + decodeMs / 10, begunMs + decodeMs),
    );
    for (const { begin } of arrived) this.pulls.delete(begin);
    return arrived;
  }
}
