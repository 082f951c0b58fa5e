import { defineOptions, runMain } from "@kvasir/config";
import { renderTimeline } from "@kvasir/telemetry";
import { clusterTrace, TRACE_OPTIONS } from "./cluster-trace.ts";

const options = defineOptions("kvasir-trace", "prints the timeline of one request", {
  ...TRACE_OPTIONS,
  json: { type: "boolean", env: "KVASIR_JSON", help: "Print the spans as JSON instead." },
});

await runMain(options, async (values) => {
  const spans = await clusterTrace(values);
  process.stdout.write(values.json ? `${JSON.stringify(spans, null, 2)}\n` : renderTimeline(spans));
});
