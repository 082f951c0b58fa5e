import { defineOptions, runMain } from "@kvasir/config";
import { clusterTrace, TRACE_OPTIONS } from "./cluster-trace.ts";
import { explainPlacements } from "./explain-placements.ts";

const options = defineOptions("kvasir explain", "says why one request ran where it ran", TRACE_OPTIONS);

await runMain(options, async (values) => {
  process.stdout.write(explainPlacements(await clusterTrace(values)));
});
