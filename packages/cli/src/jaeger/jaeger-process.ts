import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { Exit } from "../local-cluster/child.ts";
import { startGuarded } from "../local-cluster/guarded-child.ts";
import { freePort } from "../local-cluster/redis-process.ts";

const START_MAX_MS = 20_000;
const HOST = "127.0.0.1";
/** Jaeger's Go module brings its API without its web pages; these stand in for them. */
const PAGES = join(import.meta.dirname, "ui");

export interface JaegerPorts {
  /** OTLP over gRPC, where services send their spans. */
  readonly otlp: number;
  /** OTLP over HTTP. */
  readonly otlpHttp: number;
  /** Web pages and query API. */
  readonly query: number;
}

export interface JaegerOptions {
  /** Jaeger's all-in-one program. */
  readonly binary: string;
  readonly ports: JaegerPorts;
  /** Traces kept in memory. Larger: older ones can still be found; some 20 KB each. */
  readonly traceCountMax: number;
  readonly logFile: string;
}

/** A Jaeger that runs on loopback and keeps its traces in memory. */
export interface Jaeger {
  /** For OTEL_EXPORTER_OTLP_ENDPOINT. */
  readonly otlpEndpoint: string;
  readonly otlpHttpEndpoint: string;
  readonly uiUrl: string;
  readonly pid: number;
  /** Settles when it has ended, however. */
  readonly exited: Promise<Exit>;
  /** The last lines of its log. */
  errorLines(): string;
  stop(): Promise<void>;
}

/** Starts Jaeger and waits until its query API answers. Rejects with the end of its log when it ends first. */
export async function startJaeger(options: JaegerOptions): Promise<Jaeger> {
  const { binary, ports, traceCountMax, logFile } = options;
  const at = (port: number) => `${HOST}:${port}`;
  const flags = [
    "--collector.otlp.enabled=true",
    `--collector.otlp.grpc.host-port=${at(ports.otlp)}`,
    `--collector.otlp.http.host-port=${at(ports.otlpHttp)}`,
    `--query.http-server.host-port=${at(ports.query)}`,
    `--query.static-files=${PAGES}`,
    `--memory.max-traces=${traceCountMax}`,
    "--log-level=warn",
    // Ways in and out that nothing here uses; Jaeger reaches itself over some of them.
    ...(await onFreePorts("admin.http", "collector.grpc-server", "collector.http-server", "query.grpc-server")),
    ...(await onFreePorts("http-server")),
    ...["jaeger-binary", "jaeger-compact", "zipkin-compact"].map(
      (name) => `--processor.${name}.server-host-port=${at(0)}`,
    ),
  ];
  const env = { ...process.env, SPAN_STORAGE_TYPE: "memory" };
  const jaeger = startGuarded(binary, flags, { logFile, env });
  const { child } = jaeger;
  const uiUrl = `http://${at(ports.query)}`;
  const deadline = performance.now() + START_MAX_MS;
  while (jaeger.pid === 0 || !(await answersQueries(uiUrl))) {
    if (child.exit !== undefined) throw new Error(`Jaeger ended at once: ${child.errorLines(3)} (log: ${logFile})`);
    if (performance.now() > deadline) {
      await child.end(0);
      throw new Error(`Jaeger did not answer at ${uiUrl} in ${START_MAX_MS / 1000} s (log: ${logFile})`);
    }
    await delay(50);
  }
  return {
    otlpEndpoint: `http://${at(ports.otlp)}`,
    otlpHttpEndpoint: `http://${at(ports.otlpHttp)}`,
    uiUrl,
    pid: jaeger.pid,
    exited: child.exited,
    errorLines: () => child.errorLines(),
    stop: () => child.end(3_000),
  };
}

function onFreePorts(...servers: readonly string[]): Promise<readonly string[]> {
  return Promise.all(servers.map(async (server) => `--${server}.host-port=${HOST}:${await freePort()}`));
}

/** Whether a Jaeger answers there. */
export async function answersQueries(uiUrl: string): Promise<boolean> {
  try {
    const answer = await fetch(`${uiUrl}/api/services`, { signal: AbortSignal.timeout(1_000) });
    await answer.body?.cancel();
    return answer.ok;
  } catch {
    return false;
  }
}
