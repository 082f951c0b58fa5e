import type { SpanRecord } from "@kvasir/telemetry";

/**
 * For each placement of a request, in their order: where it went, why, what else there was, and each part that was predicted beside what was
 * measured of it.
 */
export function explainPlacements(spans: readonly SpanRecord[]): string {
  const inTime = spans.toSorted((a, b) => (a.startUnixNanos < b.startUnixNanos ? -1 : 1));
  const placements = inTime.filter(({ name }) => name === "router.place");
  if (placements.length === 0)
    return "no router has a span of this request: it was refused before, or its router is gone\n";
  const request = inTime.find(({ name }) => name === "gateway.request");
  const attempts = inTime.filter(({ name }) => name === "gateway.generate");
  return placements
    .map((placement, index) => {
      const attempt = attempts.find(({ startUnixNanos }) => startUnixNanos >= placement.startUnixNanos);
      const isLast = index === placements.length - 1;
      return explain(placement, index, partsOf(attempt, inTime), isLast ? request : undefined);
    })
    .join("\n");
}

/** What was measured of one attempt, in milliseconds. */
interface Measured {
  readonly queueMs?: number | undefined;
  readonly computeMs?: number | undefined;
  readonly handoverMs?: number | undefined;
  /** What was fetched of its prompt, in words; undefined: nothing was to be. */
  readonly fetched?: string | undefined;
}

function partsOf(attempt: SpanRecord | undefined, spans: readonly SpanRecord[]): Measured {
  if (attempt === undefined) return {};
  const below = new Set([attempt.spanId]);
  // Parents begin before their children.
  for (const span of spans) if (below.has(span.parentSpanId)) below.add(span.spanId);
  const found = (name: string) => spans.find((span) => span.name === name && below.has(span.spanId));
  const prefill = found("prefill.run")?.attributes ?? {};
  const handover = found("handover");
  return {
    queueMs: numberOf(prefill["kvasir.queue_ms"]),
    computeMs: numberOf(prefill["kvasir.compute_ms"]),
    handoverMs: handover === undefined ? undefined : durationMs(handover),
    fetched: fetchedText(
      prefill,
      spans.filter(({ name, spanId }) => name === "store.lend" && below.has(spanId)),
    ),
  };
}

/** What `prefill.run` tells of the fetch that the router planned, and stores of what they lent for it. */
function fetchedText(prefill: SpanRecord["attributes"], lends: readonly SpanRecord[]): string | undefined {
  const holder = prefill["kvasir.fetch_holder"];
  if (holder === undefined) return undefined;
  const sum = (name: string) => lends.reduce((total, { attributes }) => total + (numberOf(attributes[name]) ?? 0), 0);
  const failure = prefill["kvasir.fetch_failure"];
  return [
    `${prefill["kvasir.fetched_tokens"]} of ${prefill["kvasir.fetch_wanted_tokens"]} tokens from ${holder}`,
    ...(lends.length === 0
      ? []
      : [`which lent ${sum("kvasir.lent_blocks")} blocks, ${sum("kvasir.lent_blocks_from_disk")} of them from disk`]),
    ...(failure === undefined ? [] : [`the rest was computed: ${failure}`]),
  ].join("; ");
}

function explain(
  { attributes, error }: SpanRecord,
  index: number,
  measured: Measured,
  request: SpanRecord | undefined,
): string {
  const text = (name: string): string => String(attributes[name] ?? "–");
  const lines = [
    `placement ${index + 1}: ${text("kvasir.prompt_tokens")} prompt tokens, at most ${text("gen_ai.request.max_tokens")} more; ${standing(attributes)}`,
  ];
  if (error !== undefined && error !== "") return [...lines, `  refused     ${error}`, ""].join("\n");
  lines.push(`  why         ${text("kvasir.reason")}`);
  const links = (["fetch", "handover"] as const).flatMap((of) => linkText(of, attributes));
  if (links.length > 0) lines.push(`  links       ${links.join("; ")}`);
  const told = request?.attributes ?? {};
  const rows: readonly (readonly [string, unknown, unknown, string])[] = [
    ["waited", undefined, attributes["kvasir.queue_wait_ms"], "ms"],
    ["queue", attributes["kvasir.predicted_queue_ms"], measured.queueMs, "ms"],
    ["compute", attributes["kvasir.predicted_compute_ms"], measured.computeMs, "ms"],
    ["hand-over", attributes["kvasir.predicted_handover_ms"], measured.handoverMs, "ms"],
    ["TTFT", attributes["kvasir.predicted_ttft_ms"], attributes["kvasir.measured_ttft_ms"], "ms"],
    ["TBT", attributes["kvasir.predicted_tbt_ms"], told["kvasir.measured_tbt_ms"], "ms"],
    ["output", attributes["kvasir.predicted_output_tokens"], told["gen_ai.usage.output_tokens"], "tokens"],
  ];
  if (measured.fetched !== undefined) lines.push(`  fetched     ${measured.fetched}`);
  lines.push("                    predicted       measured");
  for (const [name, predicted, seen, unit] of rows) {
    if (predicted === undefined && seen === undefined) continue;
    lines.push(
      `  ${name.padEnd(10)} ${amount(predicted, unit).padStart(16)} ${amount(seen, unit).padStart(14)}`.trimEnd(),
    );
  }
  lines.push(`  candidates  ${text("kvasir.candidates")}: ${text("kvasir.scores")}`);
  return [...lines, ""].join("\n");
}

/** At which speed the placement's KV was believed to travel. */
function linkText(of: "fetch" | "handover", attributes: SpanRecord["attributes"]): readonly string[] {
  const bytesPerSecond = numberOf(attributes[`kvasir.${of}_bytes_per_second`]);
  if (bytesPerSecond === undefined) return [];
  const ageMs = numberOf(attributes[`kvasir.${of}_rate_age_ms`]);
  const guess = attributes[`kvasir.${of}_rate_of_source`] === true ? "as others measured from there" : "assumed";
  const origin = ageMs === undefined ? guess : `measured ${(ageMs / 1_000).toFixed(1)} s before`;
  const name = of === "fetch" ? `fetch from ${attributes["kvasir.fetch_holder"]}` : "hand-over";
  return [`${name} at ${(bytesPerSecond / 1e6).toFixed(1)} MB/s of ${attributes["kvasir.kv_accuracy"]} KV, ${origin}`];
}

/** How it stood beside others: class, targets, tenant. */
function standing(attributes: SpanRecord["attributes"]): string {
  const asked = attributes["kvasir.service_class"] ?? "default";
  const served = attributes["kvasir.served_class"] ?? asked;
  const targets = [
    ["TTFT", attributes["kvasir.ttft_target_ms"]],
    ["TBT", attributes["kvasir.tbt_target_ms"]],
  ].flatMap(([name, value]) => (typeof value === "number" ? [`${name} ${Math.round(value * 10) / 10} ms`] : []));
  const priority = attributes["kvasir.priority"];
  return [
    asked === served ? `class ${served}` : `class ${asked}, served as ${served}`,
    ...(priority === undefined ? [] : [`priority ${priority}`]),
    targets.length === 0 ? "no targets" : `targets ${targets.join(" and ")}`,
    ...(attributes["kvasir.best_effort"] === true ? ["on a best effort, as they cannot be met"] : []),
    `tenant ${String(attributes["kvasir.tenant"] ?? "–").slice(0, 8)}`,
  ].join(", ");
}

function amount(value: unknown, unit: string): string {
  if (typeof value !== "number") return "–";
  return unit === "ms" ? `${value.toFixed(1)} ms` : `${Math.round(value)} ${unit}`;
}

function numberOf(value: unknown): number | undefined {
  return typeof value === "number" ? value : undefined;
}

function durationMs({ startUnixNanos, endUnixNanos }: SpanRecord): number {
  return Number(BigInt(endUnixNanos) - BigInt(startUnixNanos)) / 1e6;
}
