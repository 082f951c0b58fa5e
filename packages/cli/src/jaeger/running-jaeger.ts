import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { answersQueries } from "./jaeger-process.ts";

/** Where spans go, and where they are looked at. */
export interface TraceBackend {
  /** OTLP over gRPC. */
  readonly otlpEndpoint: string;
  /** Of Jaeger's pages; absent for a collector that somebody else runs. */
  readonly uiUrl?: string;
}

const fileIn = (runDir: string): string => join(runDir, "jaeger.json");

/** Writes down that `npm run jaeger` runs one; answers with what takes it back. */
export function announceJaeger(runDir: string, backend: Required<TraceBackend>): () => void {
  mkdirSync(runDir, { recursive: true });
  writeFileSync(fileIn(runDir), `${JSON.stringify(backend, null, 2)}\n`);
  return () => rmSync(fileIn(runDir), { force: true });
}

/** The Jaeger that `npm run jaeger` runs; undefined when there is none, or it does not answer. */
export async function runningJaeger(runDir: string): Promise<Required<TraceBackend> | undefined> {
  let value: Readonly<Record<string, unknown>> | null;
  try {
    value = JSON.parse(await readFile(fileIn(runDir), "utf8"));
  } catch {
    return undefined;
  }
  const { otlpEndpoint, uiUrl } = value ?? {};
  if (typeof otlpEndpoint !== "string" || typeof uiUrl !== "string") return undefined;
  return (await answersQueries(uiUrl)) ? { otlpEndpoint, uiUrl } : undefined;
}

/** Where a cluster started here sends its spans: OTEL_EXPORTER_OTLP_ENDPOINT first, then a Jaeger of `npm run jaeger`. */
export async function findTraceBackend(runDir: string, env: NodeJS.ProcessEnv): Promise<TraceBackend | undefined> {
  const jaeger = await runningJaeger(runDir);
  const named = env.OTEL_EXPORTER_OTLP_ENDPOINT;
  if (!named) return jaeger;
  return named === jaeger?.otlpEndpoint ? jaeger : { otlpEndpoint: named };
}
