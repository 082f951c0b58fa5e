import { BYTE_TO_CHARACTER, charactersFromText } from "@kvasir/tokenizer";

/** GPT-2's split of text into words. */
const WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

export interface LearntBpe {
  /** Tokens by id: the 256 bytes, then merges in order. */
  readonly tokens: readonly string[];
  readonly merges: readonly (readonly [string, string])[];
}

/**
 * Byte-level byte-pair encoding from a text: the commonest neighbouring pair becomes a token, again and again (Sennrich et al., ACL 2016).
 * Ties go to the pair that sorts first, so the result depends on the text alone.
 */
export function learnBpe(text: string, mergeCount: number): LearntBpe {
  const counts = new Map<string, number>();
  for (const [word] of text.matchAll(WORDS)) counts.set(word, (counts.get(word) ?? 0) + 1);
  const words = [...counts].map(([word, count]) => ({ parts: [...charactersFromText(word)], count }));
  const tokens = [...BYTE_TO_CHARACTER];
  const merges: [string, string][] = [];
  while (merges.length < mergeCount) {
    const pairs = new Map<string, number>();
    for (const { parts, count } of words) {
      for (let i = 0; i + 1 < parts.length; i++) {
        const pair = `${parts[i]} ${parts[i + 1]}`;
        pairs.set(pair, (pairs.get(pair) ?? 0) + count);
      }
    }
    let best: string | undefined;
    let bestCount = 0;
    for (const [pair, count] of pairs) {
      if (count > bestCount || (count === bestCount && best !== undefined && pair < best)) {
        best = pair;
        bestCount = count;
      }
    }
    if (best === undefined) break;
    const [left = "", right = ""] = best.split(" ");
    merges.push([left, right]);
    tokens.push(left + right);
    for (const word of words) word.parts = merged(word.parts, left, right);
  }
  return { tokens, merges };
}

function merged(parts: string[], left: string, right: string): string[] {
  const out: string[] = [];
  for (let i = 0; i < parts.length; i++) {
    if (parts[i] === left && parts[i + 1] === right) {
      out.push(left + right);
      i++;
    } else {
      out.push(parts[i] ?? "");
    }
  }
  return out;
}
