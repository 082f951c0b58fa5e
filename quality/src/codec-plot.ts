import { familyOf } from "./codec-page.ts";
import type { CodecSummary } from "./codec-summary.ts";

const WIDTH = 720;
const HEIGHT = 440;
const MARGIN = { left: 70, right: 20, top: 20, bottom: 50 };
const COLOURS = { exact: "#555", uniform: "#8a6d3b", CacheGen: "#c0392b", fast: "#2980b9", dense: "#1e8449" } as const;

/** Divergence over compression, both logarithmic, one line for each family. Methods without divergence stand on the lower edge. */
export function codecPlot(summaries: readonly CodecSummary[]): string {
  const kls = summaries.map(({ klMean }) => klMean).filter((kl) => kl > 0);
  const [klLow, klHigh] = [
    10 ** Math.floor(Math.log10(Math.min(...kls))),
    10 ** Math.ceil(Math.log10(Math.max(...kls))),
  ];
  const [low, high] = [1, 2 ** Math.ceil(Math.log2(Math.max(...summaries.map(({ ratio }) => ratio))))];
  const x = (ratio: number) =>
    MARGIN.left + (Math.log(ratio / low) / Math.log(high / low)) * (WIDTH - MARGIN.left - MARGIN.right);
  const y = (kl: number) =>
    HEIGHT -
    MARGIN.bottom -
    (Math.log(Math.max(kl, klLow) / klLow) / Math.log(klHigh / klLow)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const text = (at: readonly [number, number], what: string, anchor: string, fill = "#333") =>
    `<text x="${at[0].toFixed(1)}" y="${at[1].toFixed(1)}" text-anchor="${anchor}" fill="${fill}">${what}</text>`;
  const line = (from: readonly [number, number], to: readonly [number, number]) =>
    `<path d="M${from.map((value) => value.toFixed(1)).join(" ")}L${to.map((value) => value.toFixed(1)).join(" ")}" stroke="#ddd"/>`;
  const parts: string[] = [];
  for (let ratio = low; ratio <= high; ratio *= 2) {
    parts.push(line([x(ratio), MARGIN.top], [x(ratio), HEIGHT - MARGIN.bottom]));
    parts.push(text([x(ratio), HEIGHT - MARGIN.bottom + 18], `${ratio}×`, "middle"));
  }
  for (let kl = klLow; kl <= klHigh * 1.01; kl *= 10) {
    parts.push(line([MARGIN.left, y(kl)], [WIDTH - MARGIN.right, y(kl)]));
    parts.push(text([MARGIN.left - 8, y(kl) + 4], kl.toPrecision(1), "end"));
  }
  parts.push(text([WIDTH / 2, HEIGHT - 12], "raw bytes over encoded bytes", "middle"));
  parts.push(text([MARGIN.left + 6, MARGIN.top + 12], "KL of the next token, nats", "start"));
  for (const [index, family] of (Object.keys(COLOURS) as (keyof typeof COLOURS)[]).entries()) {
    const points = summaries.filter(({ method }) => familyOf(method) === family).sort((a, b) => a.ratio - b.ratio);
    const colour = COLOURS[family];
    const path = points.map(({ ratio, klMean }) => `${x(ratio).toFixed(1)} ${y(klMean).toFixed(1)}`).join("L");
    if (points.length > 1 && family !== "exact")
      parts.push(`<path d="M${path}" fill="none" stroke="${colour}" stroke-width="2"/>`);
    for (const { ratio, klMean } of points)
      parts.push(`<circle cx="${x(ratio).toFixed(1)}" cy="${y(klMean).toFixed(1)}" r="4" fill="${colour}"/>`);
    parts.push(text([WIDTH - MARGIN.right - 90, HEIGHT - MARGIN.bottom - 110 + 20 * index], family, "start", colour));
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${HEIGHT}" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="13">
<rect width="100%" height="100%" fill="#fff"/>
${parts.join("\n")}
</svg>
`;
}
