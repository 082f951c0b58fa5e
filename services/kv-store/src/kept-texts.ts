import { BLOCK_HASH_BYTES, type Instant, type KeptText, NEVER } from "@kvasir/core";
import type { KvLayout } from "@kvasir/proto";
import type { PinRecord } from "@kvasir/state";
import { now } from "@kvasir/worker";

/** What operators pinned, as far as it is of this model and layout. */
export function keptTextsFrom(pins: readonly PinRecord[], model: string, layout: KvLayout): readonly KeptText[] {
  const fingerprint = Buffer.from(layout.exactFingerprint).toString("hex");
  return pins.flatMap((pin) => {
    const hashed = pin.layouts.find(
      (known) => known.exactFingerprint === fingerprint && known.blockSize === layout.blockSize,
    );
    if (pin.model !== model || hashed === undefined) return [];
    const bytes = Buffer.from(hashed.hashesBase64, "base64");
    const keys = Array.from({ length: Math.floor(bytes.length / BLOCK_HASH_BYTES) }, (_, index) =>
      Uint8Array.from(bytes.subarray(index * BLOCK_HASH_BYTES, (index + 1) * BLOCK_HASH_BYTES)),
    );
    return [{ keys, expiresAt: instantFromUnixMs(BigInt(pin.expiresAtUnixMs)) }];
  });
}

/** 0 is never. */
export function instantFromUnixMs(unixMs: bigint): Instant {
  return unixMs === 0n ? NEVER : ((now() + (Number(unixMs) - Date.now()) * 1e6) as Instant);
}
