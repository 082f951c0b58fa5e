import { isMet, type RatePoint, type ReplayRecord, replaySummary, type Targets } from "./replay-record.ts";
import { workerTimelines } from "./worker-timelines.ts";

const WIDTH = 640;
const HEIGHT = 260;
const MARGIN = 46;

type Points = readonly (readonly [number, number])[];

/**
 * One page that needs nothing else: distributions of TTFT and TBT, attainment by time and, where several rates were tried, by rate, requests that
 * wait for their first token and those in flight, and what each worker did when.
 */
export function htmlReport(
  title: string,
  records: readonly ReplayRecord[],
  targets: Targets,
  rates: readonly RatePoint[] = [],
): string {
  const finished = records.filter(({ outcome }) => outcome === "finished");
  const plots = [
    plot(
      "TTFT, ms: share of requests that had their first token by then",
      cdf(finished.map(({ ttftMs }) => ttftMs)),
      targets.ttftMs,
    ),
    plot(
      "Mean TBT, ms: share of requests with at most that",
      cdf(finished.map(({ tpotMs }) => tpotMs)),
      targets.tpotMs,
    ),
    plot("Share of requests that met both targets, by time of arrival in s", attainmentOverTime(records, targets)),
    ...(rates.length < 2
      ? []
      : [
          plot(
            "Share of requests that met both targets, by requests per second",
            rates.map(({ rate, attainment }) => [rate, attainment] as const),
          ),
        ]),
    plot(
      "Requests that wait for their first token, by time in s",
      countOverTime(records, ({ ttftMs }) => ttftMs),
    ),
    plot(
      "Requests in flight, by time in s",
      countOverTime(records, ({ ttftMs, tpotMs, tokenCount }) => ttftMs + tpotMs * Math.max(0, tokenCount - 1)),
    ),
  ];
  const workers = new Map<string, { count: number; tokens: number }>();
  for (const { worker, tokenCount } of records) {
    const entry = workers.get(worker) ?? { count: 0, tokens: 0 };
    workers.set(worker, { count: entry.count + 1, tokens: entry.tokens + tokenCount });
  }
  const rows = [...workers]
    .filter(([worker]) => worker !== "")
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([worker, { count, tokens }]) => `<tr><td>${escaped(worker)}</td><td>${count}</td><td>${tokens}</td></tr>`);
  const table = `<table><tr><th>decode worker</th><th>requests</th><th>tokens</th></tr>${rows.join("")}</table>`;
  return `<!doctype html><html lang="en"><meta charset="utf-8"><title>${escaped(title)}</title>
<style>body{font:14px sans-serif;margin:2em;max-width:1400px}svg{margin:0 1em 1em 0}pre{background:#f4f4f4;padding:1em}td,th{padding:.2em 1em;text-align:right}</style>
<h1>${escaped(title)}</h1><pre>${escaped(replaySummary(records, targets))}</pre>
${plots.join("\n")}
${rows.length === 0 ? "" : `${workerTimelines(records)}\n${table}`}
</html>
`;
}

function cdf(values: readonly number[]): Points {
  const sorted = [...values].sort((a, b) => a - b);
  const step = Math.max(1, Math.floor(sorted.length / 400));
  return sorted.flatMap((value, index) =>
    index % step === 0 || index === sorted.length - 1 ? [[value, (index + 1) / sorted.length] as const] : [],
  );
}

function attainmentOverTime(records: readonly ReplayRecord[], targets: Targets): Points {
  const windows = 60;
  const spanMs = Math.max(1, records.at(-1)?.arrivalMs ?? 1);
  const counts = Array.from({ length: windows }, () => ({ all: 0, met: 0 }));
  for (const record of records) {
    const window = counts[Math.min(windows - 1, Math.floor((record.arrivalMs / spanMs) * windows))];
    if (window === undefined) continue;
    window.all++;
    if (isMet(record, targets)) window.met++;
  }
  return counts.flatMap(({ all, met }, index) =>
    all === 0 ? [] : [[((index + 0.5) / windows) * (spanMs / 1_000), met / all] as const],
  );
}

/** How many requests are between their arrival and so many milliseconds after it. */
function countOverTime(records: readonly ReplayRecord[], lastsMs: (record: ReplayRecord) => number): Points {
  const changes = records.flatMap((record) => {
    if (!Number.isFinite(record.ttftMs)) return [];
    return [[record.arrivalMs, 1] as const, [record.arrivalMs + lastsMs(record), -1] as const];
  });
  let count = 0;
  return [...changes]
    .sort((a, b) => a[0] - b[0])
    .flatMap(([at, change]) => {
      const before = count;
      count += change;
      // A step: between two changes nothing moves.
      return [[at / 1_000, before] as const, [at / 1_000, count] as const];
    });
}

function plot(title: string, points: Points, target?: number): string {
  const xMax = Math.max(1e-9, target ?? 0, ...points.map(([x]) => x));
  const yMax = Math.max(1, ...points.map(([, y]) => y));
  const x = (value: number) => MARGIN + (value / xMax) * (WIDTH - MARGIN - 10);
  const y = (value: number) => HEIGHT - 30 - (value / yMax) * (HEIGHT - 60);
  const path = points.map(([px, py]) => `${x(px).toFixed(1)},${y(py).toFixed(1)}`).join(" ");
  const ticks = [0, 0.25, 0.5, 0.75, 1].map(
    (share) =>
      `<line x1="${MARGIN}" x2="${WIDTH - 10}" y1="${y(share * yMax)}" y2="${y(share * yMax)}" stroke="#ddd"/><text x="2" y="${y(share * yMax) + 4}">${short(share * yMax)}</text><text x="${x(share * xMax)}" y="${HEIGHT - 10}" text-anchor="${share === 1 ? "end" : "middle"}">${short(share * xMax)}</text>`,
  );
  const limit =
    target === undefined
      ? ""
      : `<line x1="${x(target)}" x2="${x(target)}" y1="24" y2="${HEIGHT - 30}" stroke="#c00" stroke-dasharray="4"/>`;
  return `<svg width="${WIDTH}" height="${HEIGHT}" font-size="11" font-family="sans-serif"><text x="${MARGIN}" y="14" font-weight="bold">${escaped(title)}</text>${ticks.join("")}${limit}<polyline points="${path}" fill="none" stroke="#06c" stroke-width="1.5"/></svg>`;
}

function short(value: number): string {
  return value >= 100 ? Math.round(value).toString() : value.toPrecision(2);
}

function escaped(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}
