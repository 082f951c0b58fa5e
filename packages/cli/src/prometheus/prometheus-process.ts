import { existsSync, mkdirSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { Exit } from "../local-cluster/child.ts";
import { startGuarded } from "../local-cluster/guarded-child.ts";
import type { Member } from "../running-cluster.ts";
import { scrapeConfig, targetsText } from "./scrape-config.ts";

const START_MAX_MS = 20_000;
const RULES = ["alerts.yaml", "recordings.yaml"].map((name) =>
  join(import.meta.dirname, "../../../../deploy/prometheus", name),
);

export interface PrometheusOptions {
  /** The folder that has the programs. */
  readonly programs: string;
  readonly port: number;
  readonly intervalS: number;
  /** Configuration, targets and samples. */
  readonly directory: string;
  readonly logFile: string;
}

/** A Prometheus that runs on loopback and scrapes what it is told. */
export interface Prometheus {
  readonly url: string;
  readonly exited: Promise<Exit>;
  /** Replaces the targets; noticed within seconds. */
  setTargets(members: readonly Member[]): void;
  errorLines(): string;
  stop(): Promise<void>;
}

/** Starts Prometheus with the rules of deploy/prometheus and no targets. Rejects with the end of its log when it ends first. */
export async function startPrometheus(options: PrometheusOptions): Promise<Prometheus> {
  const { programs, port, intervalS, directory, logFile } = options;
  mkdirSync(directory, { recursive: true });
  const targetsFile = join(directory, "targets.json");
  const configFile = join(directory, "prometheus.json");
  let written = "";
  const setTargets = (members: readonly Member[]): void => {
    const text = targetsText(members);
    if (text === written) return;
    // Prometheus must never read half a file.
    writeFileSync(`${targetsFile}.new`, text);
    renameSync(`${targetsFile}.new`, targetsFile);
    written = text;
  };
  setTargets([]);
  writeFileSync(configFile, scrapeConfig({ intervalS, rulesFiles: RULES, targetsFile }));
  // Debian's program looks for its pages where the package is installed; here it may be unpacked elsewhere.
  const pages = join(programs, "../share/prometheus/web");
  const flags = [
    `--config.file=${configFile}`,
    `--web.listen-address=127.0.0.1:${port}`,
    `--storage.tsdb.path=${join(directory, "data")}`,
    "--storage.tsdb.retention.time=1d",
    "--log.level=warn",
    ...(existsSync(pages) ? [`--web.local-assets=${pages}`] : []),
  ];
  const { child } = startGuarded(join(programs, "prometheus"), flags, { logFile });
  const url = `http://127.0.0.1:${port}`;
  const deadline = performance.now() + START_MAX_MS;
  while (!(await isReady(url))) {
    if (child.exit !== undefined) throw new Error(`Prometheus ended at once: ${child.errorLines(3)} (log: ${logFile})`);
    if (performance.now() > deadline) {
      await child.end(0);
      throw new Error(`Prometheus did not answer at ${url} in ${START_MAX_MS / 1000} s (log: ${logFile})`);
    }
    await delay(50);
  }
  return {
    url,
    exited: child.exited,
    setTargets,
    errorLines: () => child.errorLines(),
    stop: () => child.end(5_000),
  };
}

async function isReady(url: string): Promise<boolean> {
  try {
    const answer = await fetch(`${url}/-/ready`, { signal: AbortSignal.timeout(1_000) });
    await answer.body?.cancel();
    return answer.ok;
  } catch {
    return false;
  }
}
