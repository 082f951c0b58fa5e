import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { REPOSITORY } from "./report.ts";

export interface Curve {
  readonly name: string;
  /** (requests per second, share that met the targets), by rate. */
  readonly points: readonly (readonly [number, number])[];
}

const WIDTH = 860;
const HEIGHT = 420;
const LEFT = 50;
const RIGHT = 260;
const TOP = 30;
const BOTTOM = 40;

/** With `--write`, keeps the attainment of policies against the rate as an SVG beside the results. */
export function attainmentPlot(file: string, title: string, curves: readonly Curve[]): void {
  if (!process.argv.includes("--write")) return;
  const highest = Math.max(1, ...curves.flatMap(({ points }) => points.map(([rate]) => rate)));
  const x = (rate: number) => LEFT + (rate / highest) * (WIDTH - LEFT - RIGHT);
  const y = (share: number) => HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM);
  const lines = curves.map(({ name, points }, index) => {
    const isOurs = name.startsWith("Kvasir");
    const colour = `hsl(${Math.round((index * 360) / curves.length)} 65% 42%)`;
    const path = points.map(([rate, share]) => `${x(rate).toFixed(1)},${y(share).toFixed(1)}`).join(" ");
    const label = TOP + 14 + index * 20;
    return `<polyline points="${path}" fill="none" stroke="${colour}" stroke-width="${isOurs ? 3 : 1.3}"/>
<line x1="${WIDTH - RIGHT + 14}" x2="${WIDTH - RIGHT + 34}" y1="${label - 4}" y2="${label - 4}" stroke="${colour}" stroke-width="${isOurs ? 3 : 1.3}"/>
<text x="${WIDTH - RIGHT + 40}" y="${label}">${name}</text>`;
  });
  const grid = [0, 0.25, 0.5, 0.75, 0.9, 1].map(
    (share) =>
      `<line x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${y(share)}" y2="${y(share)}" stroke="#ccc"/><text x="8" y="${y(share) + 4}">${Math.round(100 * share)} %</text>`,
  );
  const ticks = [0, 0.25, 0.5, 0.75, 1].map(
    (part) =>
      `<text x="${x(part * highest)}" y="${HEIGHT - BOTTOM + 18}" text-anchor="middle">${(part * highest).toFixed(0)}</text>`,
  );
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="12">
<rect width="${WIDTH}" height="${HEIGHT}" fill="white"/>
<text x="${LEFT}" y="18" font-weight="bold">${title}: requests that met both targets, by requests per second</text>
${[...grid, ...ticks, ...lines].join("\n")}
</svg>
`;
  const folder = join(REPOSITORY, "docs", "results");
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, file), svg);
}
