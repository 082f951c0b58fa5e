import type { ReplayRecord } from "./replay-record.ts";

const WIDTH = 1_000;
const LEFT = 110;
const ROW = 16;
const SLICES = 200;
/** Rows shown; a page of a thousand workers would be of no use. */
const WORKERS_MAX = 64;

interface Interval {
  readonly worker: string;
  readonly fromMs: number;
  readonly toMs: number;
}

/**
 * A row for each worker over the time of the replay, the darker the more it has at once: prompts from their arrival to the first token, where they are
 * computed, and answers from there to their last token, where they are decoded.
 */
export function workerTimelines(records: readonly ReplayRecord[]): string {
  const prompts: Interval[] = [];
  const answers: Interval[] = [];
  for (const { arrivalMs, ttftMs, tpotMs, tokenCount, prefillWorker, worker } of records) {
    if (!Number.isFinite(ttftMs) || worker === "") continue;
    const firstMs = arrivalMs + ttftMs;
    if (prefillWorker !== "") prompts.push({ worker: prefillWorker, fromMs: arrivalMs, toMs: firstMs });
    answers.push({ worker, fromMs: firstMs, toMs: firstMs + tpotMs * Math.max(0, tokenCount - 1) });
  }
  return `${timeline("Prompts that wait or are computed, by worker and time", prompts)}\n${timeline("Answers that are decoded, by worker and time", answers)}`;
}

function timeline(title: string, intervals: readonly Interval[]): string {
  const endMs = intervals.reduce((end, { toMs }) => Math.max(end, toMs), 1);
  const workers = [...new Set(intervals.map(({ worker }) => worker))].sort().slice(0, WORKERS_MAX);
  const means = new Map(workers.map((worker) => [worker, new Float64Array(SLICES)]));
  const sliceMs = endMs / SLICES;
  for (const { worker, fromMs, toMs } of intervals) {
    const row = means.get(worker);
    for (
      let slice = Math.floor(fromMs / sliceMs);
      row !== undefined && slice < SLICES && slice * sliceMs < toMs;
      slice++
    ) {
      const overlapMs = Math.min(toMs, (slice + 1) * sliceMs) - Math.max(fromMs, slice * sliceMs);
      row[slice] = (row[slice] ?? 0) + overlapMs / sliceMs;
    }
  }
  const most = Math.max(1e-9, ...[...means.values()].flatMap((row) => [...row]));
  const wide = (WIDTH - LEFT) / SLICES;
  const rows = workers.map((worker, index) => {
    const cells = [...(means.get(worker) ?? [])].flatMap((mean, slice) =>
      mean <= 0
        ? []
        : [
            `<rect x="${(LEFT + slice * wide).toFixed(1)}" y="${24 + index * ROW}" width="${(wide + 0.2).toFixed(1)}" height="${ROW - 2}" fill="#06c" fill-opacity="${(mean / most).toFixed(2)}"/>`,
          ],
    );
    const name = worker.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
    return `<g class="row"><text x="0" y="${35 + index * ROW}">${name}</text>${cells.join("")}</g>`;
  });
  const height = 44 + workers.length * ROW;
  return `<svg width="${WIDTH}" height="${height}" font-size="11" font-family="sans-serif"><text x="0" y="14" font-weight="bold">${title}; darkest: ${most.toFixed(1)} at once</text>${rows.join("")}<text x="${LEFT}" y="${height - 4}">0</text><text x="${WIDTH}" y="${height - 4}" text-anchor="end">${(endMs / 1_000).toFixed(0)} s</text></svg>`;
}
