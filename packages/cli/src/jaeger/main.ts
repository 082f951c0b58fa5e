import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { defineOptions, runMain } from "@kvasir/config";
import { checkPortIsFree } from "../up/check-port.ts";
import { watchForStop } from "../up/stop-request.ts";
import { startJaeger } from "./jaeger-process.ts";
import { announceJaeger, runningJaeger } from "./running-jaeger.ts";

const CACHE = process.env.KVASIR_CACHE || join(import.meta.dirname, "../../../../.cache");
const RUN_DIR = join(CACHE, "run");
const PORT = { type: "integer", min: 1, max: 65_535 } as const;

const options = defineOptions("npm run jaeger --", "Jaeger on this machine; npm run up sends its spans there", {
  binary: {
    type: "string",
    env: "KVASIR_JAEGER",
    help: "Jaeger's all-in-one program. Default: the one that npm run jaeger built.",
  },
  uiPort: { ...PORT, env: "KVASIR_JAEGER_UI_PORT", default: 16_686, help: "Web pages and query API." },
  otlpPort: { ...PORT, env: "KVASIR_JAEGER_OTLP_PORT", default: 4317, help: "OTLP over gRPC." },
  otlpHttpPort: { ...PORT, env: "KVASIR_JAEGER_OTLP_HTTP_PORT", default: 4318, help: "OTLP over HTTP." },
  maxTraces: {
    type: "integer",
    env: "KVASIR_JAEGER_MAX_TRACES",
    default: 20_000,
    min: 1,
    help: "Traces kept, in memory; the oldest go first.",
  },
});

await runMain(options, async ({ binary, uiPort, otlpPort, otlpHttpPort, maxTraces }) => {
  if (binary === undefined) throw new Error("no Jaeger program is named; start this with npm run jaeger");
  const other = await runningJaeger(RUN_DIR);
  if (other !== undefined) throw new Error(`a Jaeger runs already: ${other.uiUrl}, OTLP at ${other.otlpEndpoint}`);
  const command = "npm run jaeger --";
  await checkPortIsFree(uiPort, `${command} --ui-port`);
  await checkPortIsFree(otlpPort, `${command} --otlp-port`);
  await checkPortIsFree(otlpHttpPort, `${command} --otlp-http-port`);
  mkdirSync(join(RUN_DIR, "logs"), { recursive: true });
  const stop = watchForStop(() => process.exit(130));
  const jaeger = await startJaeger({
    binary,
    ports: { otlp: otlpPort, otlpHttp: otlpHttpPort, query: uiPort },
    traceCountMax: maxTraces,
    logFile: join(RUN_DIR, "logs/jaeger.log"),
  });
  const { uiUrl, otlpEndpoint, otlpHttpEndpoint } = jaeger;
  const retract = announceJaeger(RUN_DIR, { uiUrl, otlpEndpoint });
  process.once("exit", retract);
  process.stdout.write(
    `${[
      `traces       ${uiUrl}/search`,
      `OTLP, gRPC   ${otlpEndpoint}`,
      `OTLP, HTTP   ${otlpHttpEndpoint}/v1/traces`,
      "",
      "npm run up, started from now on, sends its spans there; so does any service with",
      `  OTEL_EXPORTER_OTLP_ENDPOINT=${otlpEndpoint}`,
      "Ctrl-C ends it.",
    ].join("\n")}\n`,
  );
  const end = await Promise.race([stop.requested, jaeger.exited]);
  if (end !== undefined) throw new Error(`Jaeger ended (${end.signal ?? `code ${end.code}`}): ${jaeger.errorLines()}`);
  await jaeger.stop();
  process.stdout.write("stopped; its traces are gone\n");
  process.exit(0);
});
