/** llama.cpp's type of ordinary tokens. */
const NORMAL = 1;

/**
 * The merges of a SentencePiece BPE vocabulary. SentencePiece merges the neighbours whose union has the highest score (Kudo & Richardson,
 * EMNLP 2018); a table of merges does the same when every split of every token is in it, ordered by the token's score. Of the splits of one
 * token the one with the longest left part comes first, as in transformers' conversion.
 */
export function mergesByScore(
  tokens: readonly string[],
  scores: readonly number[],
  types: readonly number[],
): [left: string, right: string][] {
  const isNormal = (id: number) => (types[id] ?? NORMAL) === NORMAL;
  const pieces = new Set(tokens.filter((_, id) => isNormal(id)));
  const byScore = Array.from(tokens.keys())
    .filter(isNormal)
    .sort((a, b) => (scores[b] ?? 0) - (scores[a] ?? 0) || a - b);
  const merges: [string, string][] = [];
  for (const id of byScore) {
    const characters = Array.from(tokens[id] ?? "");
    for (let cut = characters.length - 1; cut >= 1; cut--) {
      const [left, right] = [characters.slice(0, cut).join(""), characters.slice(cut).join("")];
      if (pieces.has(left) && pieces.has(right)) merges.push([left, right]);
    }
  }
  return merges;
}
