/**
 * Two-sided p of the Wilcoxon–Mann–Whitney rank-sum test (Mann and Whitney, Ann. Math. Stat. 1947), by its normal approximation with midranks
 * for ties: that two samples, of at least some ten values each, come from one distribution.
 */
export function rankSumP(a: readonly number[], b: readonly number[]): number {
  const all = [...a.map((value) => ({ value, isA: true })), ...b.map((value) => ({ value, isA: false }))];
  all.sort((x, y) => x.value - y.value);
  let rankSum = 0;
  let ties = 0;
  for (let begin = 0; begin < all.length; ) {
    let end = begin;
    while (end < all.length && all[end]?.value === all[begin]?.value) end++;
    const midrank = (begin + 1 + end) / 2;
    for (let index = begin; index < end; index++) if (all[index]?.isA) rankSum += midrank;
    ties += (end - begin) ** 3 - (end - begin);
    begin = end;
  }
  const [m, n, total] = [a.length, b.length, all.length];
  const u = rankSum - (m * (m + 1)) / 2;
  const variance = ((m * n) / 12) * (total + 1 - ties / (total * (total - 1)));
  if (variance === 0) return 1;
  return 2 * (1 - normalCdf(Math.max(0, Math.abs(u - (m * n) / 2) - 0.5) / Math.sqrt(variance)));
}

/** Of z at or above 0, within 8e-8 (Abramowitz and Stegun, 26.2.17). */
function normalCdf(z: number): number {
  const t = 1 / (1 + 0.231_641_9 * z);
  const series =
    t * (0.319_381_53 + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
  return 1 - (Math.exp((-z * z) / 2) / Math.sqrt(2 * Math.PI)) * series;
}
