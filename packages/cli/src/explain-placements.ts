import type { SpanRecord } from "@kvasir/telemetry";

/** For each placement of a request, in their order: where it went, why, what else there was, and the predicted beside the measured TTFT. */
export function explainPlacements(spans: readonly SpanRecord[]): string {
  const placements = spans
    .filter(({ name }) => name === "router.place")
    .sort((a, b) => (a.startUnixNanos < b.startUnixNanos ? -1 : 1));
  if (placements.length === 0)
    return "no router has a span of this request: it was refused before, or its router is gone\n";
  return placements.map((span, index) => explain(span, index)).join("\n");
}

function explain({ attributes, error }: SpanRecord, index: number): string {
  const text = (name: string): string => String(attributes[name] ?? "–");
  const lines = [
    `placement ${index + 1}: ${text("kvasir.prompt_tokens")} prompt tokens, at most ${text("gen_ai.request.max_tokens")} more`,
  ];
  if (error !== undefined && error !== "") return [...lines, `  refused     ${error}`, ""].join("\n");
  lines.push(`  why         ${text("kvasir.reason")}`);
  lines.push(
    `  TTFT        predicted ${ms(attributes["kvasir.predicted_ttft_ms"])}, measured ${ms(attributes["kvasir.measured_ttft_ms"])}`,
  );
  lines.push(`  TBT         predicted ${ms(attributes["kvasir.predicted_tbt_ms"])}`);
  lines.push(`  candidates  ${text("kvasir.candidates")}: ${text("kvasir.scores")}`);
  return [...lines, ""].join("\n");
}

function ms(value: unknown): string {
  return typeof value === "number" ? `${value.toFixed(1)} ms` : "–";
}
