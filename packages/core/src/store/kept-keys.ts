import type { Instant } from "../time.ts";

/** A text whose first blocks an operator wants to stay. */
export interface KeptText {
  /** 16 bytes each, from its beginning on. */
  readonly keys: readonly Uint8Array[];
  /** NEVER where it has no end. */
  readonly expiresAt: Instant;
}

/**
 * The blocks that are kept at a moment, each once: those of the texts in their order, as far as there is room for. Later texts, and ends of
 * texts, go without.
 */
export function keptKeys(texts: readonly KeptText[], blockMax: number, now: Instant): readonly Uint8Array[] {
  const found = new Map<string, Uint8Array>();
  for (const { keys, expiresAt } of texts) {
    if (expiresAt <= now) continue;
    for (const key of keys) {
      if (found.size >= blockMax) return [...found.values()];
      found.set(keyText(key), key);
    }
  }
  return [...found.values()];
}

/** Equal for equal keys. */
export function keyText(key: Uint8Array): string {
  return String.fromCharCode(...key);
}
