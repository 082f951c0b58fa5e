import type { SpanRecord } from "./span-record.ts";

const BAR_WIDTH = 24;
/** Where the names of spans begin. */
const NOTE_INDENT = 10 + 1 + 10 + 1 + (BAR_WIDTH + 2) + 1;
const ATTRIBUTES_WIDTH_MAX = 160;
/** A longer text gets a line of its own, below its span. */
const INLINE_WIDTH_MAX = 48;
const NOTE_WIDTH_MAX = 600;
/** Attributes that say what a reader of one request sees anyway. */
const DULL_PREFIXES = ["rpc.", "server.", "client.", "network.", "thread.", "code.", "url.", "busy_ns", "idle_ns"];
const DULL_KEYS = [
  "kvasir.request_id",
  "kvasir.worker_id",
  "gen_ai.operation.name",
  "gen_ai.provider.name",
  "error.type",
];

interface Row {
  readonly span: SpanRecord;
  readonly depth: number;
  readonly isOrphan: boolean;
}

/**
 * A request's timeline for a terminal: its spans as a tree, each with its offset from the root's start, its duration (both ms), a
 * bar, where it ran, and its attributes; long ones, and errors, on lines below. Pure; the order of `spans` does not matter.
 *
 * A span whose parent is not among them stands at the root, marked `?`: its parent has not ended, was dropped, or its service
 * could not be asked. Clocks of two machines may differ, so a child may seem to start before its parent: offsets are shown as
 * they are and bars are cut at the edges.
 */
export function renderTimeline(spans: readonly SpanRecord[]): string {
  const rows = treeRows(spans);
  const origin = rows.find((row) => !row.isOrphan) ?? rows[0];
  if (origin === undefined) return "no spans\n";
  const originNanos = BigInt(origin.span.startUnixNanos);
  const offsetMs = (nanos: string): number => Number(BigInt(nanos) - originNanos) / 1e6;
  const totalMs = Math.max(...rows.map((row) => offsetMs(row.span.endUnixNanos)), 0);

  const instances = new Set(rows.map((row) => row.span.instance));
  const nameWidth = Math.max(...rows.map((row) => label(row).length));
  const instanceWidth = Math.max(...rows.map((row) => row.span.instance.length));
  const lines = [
    `trace ${origin.span.traceId}: ${rows.length} spans of ${instances.size} processes in ${totalMs.toFixed(1)} ms`,
    `${"start ms".padStart(10)} ${"took ms".padStart(10)}`,
  ];
  for (const row of rows) {
    const startMs = offsetMs(row.span.startUnixNanos);
    const endMs = offsetMs(row.span.endUnixNanos);
    const { inline, notes } = attributesText(row.span);
    const cells = [
      startMs.toFixed(1).padStart(10),
      (endMs - startMs).toFixed(1).padStart(10),
      `|${bar(startMs, endMs, totalMs)}|`,
      label(row).padEnd(nameWidth),
      row.span.instance.padEnd(instanceWidth),
      inline,
    ];
    lines.push(cells.join(" ").trimEnd());
    for (const { spanId } of row.span.links ?? []) {
      const target = rows.find(({ span }) => span.spanId === spanId)?.span;
      notes.push(
        `follows ${target === undefined ? `span ${spanId}` : `${target.name} at ${offsetMs(target.startUnixNanos).toFixed(1)} ms`}`,
      );
    }
    for (const note of notes) lines.push(`${" ".repeat(NOTE_INDENT)}${"  ".repeat(row.depth)}${note}`);
  }
  return `${lines.join("\n")}\n`;
}

function label(row: Row): string {
  return `${"  ".repeat(row.depth)}${row.isOrphan ? "? " : ""}${row.span.name}`;
}

/** Depth first; siblings by start, then by id. Two records of one span count once. */
function treeRows(spans: readonly SpanRecord[]): readonly Row[] {
  const byId = new Map(spans.map((span) => [span.spanId, span]));
  const children = new Map<string, SpanRecord[]>();
  for (const span of byId.values()) {
    const parentId = byId.has(span.parentSpanId) ? span.parentSpanId : "";
    const siblings = children.get(parentId);
    if (siblings === undefined) children.set(parentId, [span]);
    else siblings.push(span);
  }
  for (const siblings of children.values()) siblings.sort(byStart);

  const rows: Row[] = [];
  const visited = new Set<string>();
  const visit = (span: SpanRecord, depth: number): void => {
    if (visited.has(span.spanId)) return;
    visited.add(span.spanId);
    rows.push({ span, depth, isOrphan: depth === 0 && span.parentSpanId !== "" });
    for (const child of children.get(span.spanId) ?? []) visit(child, depth + 1);
  };
  for (const root of children.get("") ?? []) visit(root, 0);
  // Spans that name each other as parents hang from no root; they are shown rather than lost.
  for (const span of [...byId.values()].sort(byStart)) visit(span, 0);
  return rows;
}

function byStart(a: SpanRecord, b: SpanRecord): number {
  const difference = BigInt(a.startUnixNanos) - BigInt(b.startUnixNanos);
  if (difference !== 0n) return difference < 0n ? -1 : 1;
  return a.spanId < b.spanId ? -1 : 1;
}

function bar(startMs: number, endMs: number, totalMs: number): string {
  const cell = (ms: number): number => (totalMs === 0 ? 0 : Math.min(Math.max(ms / totalMs, 0), 1) * BAR_WIDTH);
  const from = Math.min(Math.floor(cell(startMs)), BAR_WIDTH - 1);
  const to = Math.max(Math.ceil(cell(endMs)), from + 1);
  return `${" ".repeat(from)}${"=".repeat(to - from)}${" ".repeat(BAR_WIDTH - to)}`;
}

function attributesText(span: SpanRecord): { readonly inline: string; readonly notes: string[] } {
  const inline: string[] = [];
  const notes = span.error === undefined ? [] : [`ERROR: ${cut(printable(span.error), NOTE_WIDTH_MAX)}`];
  for (const [key, value] of Object.entries(span.attributes)) {
    if (DULL_KEYS.includes(key) || DULL_PREFIXES.some((prefix) => key.startsWith(prefix))) continue;
    const name = printable(key).replace(/^kvasir\.|^gen_ai\.(request|response|usage)\./, "");
    const text = valueText(value);
    if (text.length > INLINE_WIDTH_MAX) notes.push(`${name}: ${cut(text, NOTE_WIDTH_MAX)}`);
    else inline.push(`${name}=${/\s/.test(text) ? JSON.stringify(text) : text}`);
  }
  return { inline: cut(inline.join(" "), ATTRIBUTES_WIDTH_MAX), notes };
}

function valueText(value: string | number | boolean): string {
  if (typeof value === "number") return Number.isInteger(value) ? `${value}` : `${Number(value.toPrecision(4))}`;
  return typeof value === "boolean" ? `${value}` : printable(value);
}

/** Attribute text comes from other processes; a control character must not reach the terminal. */
function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, " ");
}

function cut(text: string, width: number): string {
  return text.length <= width ? text : `${text.slice(0, width - 1)}…`;
}
