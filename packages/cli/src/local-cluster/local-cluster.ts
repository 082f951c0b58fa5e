import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { Identity } from "@kvasir/core";
import { RouterService } from "@kvasir/proto";
import { createClient, PLAIN, type Transport, transportFrom } from "@kvasir/rpc";
import type { SpanRecord } from "@kvasir/telemetry";
import { collectTrace } from "../collect-trace.ts";
import { issueCertificates, issuedFiles } from "./certificates.ts";
import type { Exit } from "./child.ts";
import { type LocalClusterOptions, serviceArgs } from "./cluster-options.ts";
import { OwnRedis } from "./own-redis.ts";
import { samplesFromText } from "./prometheus-text.ts";
import { type ProcessHandle, ServiceProcess } from "./service-process.ts";

const SERVICE_READY_MAX_MS = 60_000;
/** A worker loads its model first. */
const WORKER_READY_MAX_MS = 300_000;
const ATTACH_MAX_MS = 60_000;
const STOP_GRACE_MS = 10_000;
const RESTART_FIRST_MS = 250;
const RESTART_MAX_MS = 10_000;
const SCRAPE_MAX_MS = 5_000;
const SPANS_DELAY_MS = "500";

/** Who asks on behalf of the person at the terminal. */
export const OPERATOR: Identity = { role: "operator", id: "operator" };
const REDIS: Identity = { role: "redis", id: "redis" };
const SILENT = { info: () => undefined, warn: () => undefined };

/** A whole cluster on this machine: the same processes as anywhere, with addresses on loopback. */
export interface LocalCluster {
  readonly gatewayUrl: string;
  readonly redisUrl: string;
  readonly cluster: string;
  readonly processes: readonly ProcessHandle[];
  /** One process by name, e.g. `prefill-0`. */
  process(name: string): ProcessHandle;
  /** Samples of one process's /metrics. */
  metrics(name: string): Promise<Map<string, number>>;
  /** All processes' spans of one trace. */
  spans(traceId: string): Promise<readonly SpanRecord[]>;
  /** Waits until the router has all workers and stores, and the gateway says it is ready. */
  ready(): Promise<void>;
  /** Ends every process: asks first, insists after some seconds. */
  stop(): Promise<void>;
  /** Ends every process at once. */
  kill(): void;
}

/** Starts Redis (unless one is given), router, gateway and workers, and waits until the cluster is ready. On failure nothing is left. */
export async function startLocalCluster(options: LocalClusterOptions): Promise<LocalCluster> {
  mkdirSync(options.logDir, { recursive: true });
  const stateDir = mkdtempSync(join(tmpdir(), "kvasir-"));
  const cluster = options.cluster ?? "local";
  const running = new RunningCluster(options, cluster, stateDir);
  const abort = () => void running.stop();
  options.signal?.addEventListener("abort", abort, { once: true });
  try {
    await running.start();
    options.signal?.removeEventListener("abort", abort);
    options.signal?.throwIfAborted();
    return running;
  } catch (error) {
    await running.stop();
    throw error;
  }
}

class RunningCluster implements LocalCluster {
  readonly cluster: string;
  readonly #options: LocalClusterOptions;
  readonly #stateDir: string;
  readonly #services: ServiceProcess[] = [];
  /** By name: the wait before the last restart, and when the process was ready after it. */
  readonly #restarts = new Map<string, { readonly waitMs: number; readonly readyAt: number }>();
  #transport: Transport = PLAIN;
  #redis: OwnRedis | undefined;
  #redisUrl = "";
  #isStopping = false;

  constructor(options: LocalClusterOptions, cluster: string, stateDir: string) {
    this.#options = options;
    this.cluster = cluster;
    this.#stateDir = stateDir;
  }

  get redisUrl(): string {
    return this.#redisUrl;
  }
  get gatewayUrl(): string {
    return `http://${this.process("gateway-0").httpAddress}`;
  }
  get processes(): readonly ProcessHandle[] {
    return this.#redis ? [this.#redis, ...this.#services] : this.#services;
  }

  process(name: string): ProcessHandle {
    const found = this.processes.find((handle) => handle.name === name);
    if (!found) throw new Error(`no process ${name}; there is: ${this.processes.map((p) => p.name).join(", ")}`);
    return found;
  }

  async start(): Promise<void> {
    const {
      routers = 1,
      prefill = 1,
      decode = 1,
      mixed = 0,
      stores = 0,
      port = 0,
      logDir,
      tlsDirectory,
    } = this.#options;
    const counts = { router: routers, gateway: 1, prefill, decode, mixed, store: stores } as const;
    const kinds = Object.keys(counts) as (keyof typeof counts)[];
    const services = kinds.flatMap((kind) =>
      Array.from({ length: counts[kind] }, (_, index) => ({ kind, name: `${kind}-${index}` })),
    );
    if (tlsDirectory !== undefined) {
      const start = performance.now();
      await issueCertificates({
        directory: tlsDirectory,
        identities: [...services.map(({ kind, name }): Identity => ({ role: kind, id: name })), OPERATOR, REDIS],
      });
      this.#transport = transportFrom(issuedFiles(tlsDirectory, OPERATOR.id), OPERATOR, SILENT);
      this.#say("certificates", start);
    }
    if (this.#options.redisUrl === undefined) {
      const start = performance.now();
      const onExit = (exit: Exit, errors: string) => this.#lost(this.#redis, exit, errors);
      const tls = tlsDirectory === undefined ? undefined : issuedFiles(tlsDirectory, REDIS.id);
      this.#redis = new OwnRedis(join(logDir, "redis.log"), tls, onExit);
      await this.#redis.start();
      this.#say("redis", start);
    }
    this.#redisUrl = this.#options.redisUrl ?? this.#redis?.url ?? "";
    const shared = { redisUrl: this.#redisUrl, cluster: this.cluster, stateDir: this.#stateDir };
    const { otlpEndpoint } = this.#options;
    const inherited = otlpEndpoint === undefined ? process.env : exportingTo(otlpEndpoint);
    const env = { ...inherited, ...this.#options.env };
    for (const { kind, name } of services) {
      const loadsModel = kind === "prefill" || kind === "decode" || kind === "mixed";
      const readyMaxMs = loadsModel ? WORKER_READY_MAX_MS : SERVICE_READY_MAX_MS;
      // A gateway that took any port keeps it over restarts.
      const args = (httpAddress: string | undefined) => {
        const gatewayPort = httpAddress === undefined ? port : Number(httpAddress.split(":").at(-1));
        return serviceArgs(kind, name, this.#options, { ...shared, gatewayPort });
      };
      const logFile = join(logDir, `${name}.log`);
      const command = { name, kind, node: process.execPath, args, env, logFile, readyMaxMs };
      this.#services.push(new ServiceProcess(command, (handle, exit, errors) => this.#lost(handle, exit, errors)));
    }
    if (this.#isStopping) return;
    const starts = this.#services.map(async (service) => {
      const start = performance.now();
      await service.start();
      this.#say(service.name, start);
    });
    await Promise.all(starts);
    await this.ready();
  }

  async ready(): Promise<void> {
    const deadline = performance.now() + ATTACH_MAX_MS;
    for (;;) {
      const missing = await this.#whatIsMissing();
      if (missing === undefined || this.#isStopping) return;
      if (performance.now() > deadline) throw new Error(`the cluster is not ready: ${missing}`);
      await delay(50);
    }
  }

  /** Why not every worker can be placed on yet; undefined when all can. */
  async #whatIsMissing(): Promise<string | undefined> {
    const routers = this.#services.filter(({ kind }) => kind === "router");
    const clients = routers.map(({ name, grpcAddress }) => {
      return { name, client: createClient(RouterService, grpcAddress ?? "", this.#transport) };
    });
    try {
      for (const { name: router, client } of clients) {
        const { workers, stores } = await client.describeCluster({}, { deadlineMs: 2_000 });
        const attached = new Set([
          ...workers.map((worker) => worker.hello?.workerId),
          ...stores.map((store) => store.hello?.storeId),
        ]);
        for (const { name, kind } of this.#services) {
          if (kind === "router" || kind === "gateway") continue;
          if (!attached.has(name)) return `${name} is not attached to ${router}`;
        }
      }
      const answer = await fetch(`${this.gatewayUrl}/ready`, { signal: AbortSignal.timeout(SCRAPE_MAX_MS) });
      return answer.ok ? undefined : `the gateway says ${(await answer.text()).trim()}`;
    } catch (error) {
      return error instanceof Error ? error.message : String(error);
    } finally {
      for (const { client } of clients) client.channel.close();
    }
  }

  async metrics(name: string): Promise<Map<string, number>> {
    const { adminAddress } = this.process(name);
    const signal = AbortSignal.timeout(SCRAPE_MAX_MS);
    return samplesFromText(await (await fetch(`http://${adminAddress}/metrics`, { signal })).text());
  }

  async spans(traceId: string): Promise<readonly SpanRecord[]> {
    const sources = this.#services.flatMap(({ name, adminAddress }) => (adminAddress ? [{ name, adminAddress }] : []));
    const { spans } = await collectTrace(sources, traceId, async (url) =>
      (await fetch(url, { signal: AbortSignal.timeout(SCRAPE_MAX_MS) })).json(),
    );
    return spans;
  }

  async stop(): Promise<void> {
    this.#isStopping = true;
    // Who takes requests ends first, so that what runs can end well; Redis last, since the others take leave of it.
    await Promise.all(this.#services.filter(({ kind }) => kind === "gateway").map((p) => p.stop(STOP_GRACE_MS)));
    await Promise.all(this.#services.map((service) => service.stop(STOP_GRACE_MS)));
    await this.#redis?.stop();
    rmSync(this.#stateDir, { recursive: true, force: true });
  }

  kill(): void {
    this.#isStopping = true;
    for (const handle of this.processes) void handle.kill("SIGKILL");
    rmSync(this.#stateDir, { recursive: true, force: true });
  }

  #say(name: string, start: number): void {
    this.#options.onEvent?.({ kind: "started", name, ms: performance.now() - start });
  }

  #lost(handle: ProcessHandle | undefined, exit: Exit, errors: string): void {
    if (this.#isStopping || handle === undefined) return;
    const how = exit.signal === null ? `exit code ${exit.code}` : `${exit.signal}`;
    this.#options.onEvent?.({ kind: "lost", name: handle.name, how, errors });
    if (this.#options.restart) void this.#restart(handle);
  }

  /** Starts a lost process again, at longer and longer distances while it does not live for as long as the last one. */
  async #restart(handle: ProcessHandle): Promise<void> {
    const { waitMs: lastMs = 0, readyAt = 0 } = this.#restarts.get(handle.name) ?? {};
    const hasLived = performance.now() - readyAt > lastMs;
    const waitMs = hasLived ? RESTART_FIRST_MS : Math.min(lastMs * 2, RESTART_MAX_MS);
    this.#restarts.set(handle.name, { waitMs, readyAt: Number.POSITIVE_INFINITY });
    await delay(waitMs);
    if (this.#isStopping) return;
    try {
      await handle.restart();
      this.#restarts.set(handle.name, { waitMs, readyAt: performance.now() });
      this.#options.onEvent?.({ kind: "restarted", name: handle.name });
    } catch (error) {
      this.#lost(handle, { code: 1, signal: null }, error instanceof Error ? error.message : String(error));
    }
  }
}

/** The environment of a process that sends its spans there; on one machine somebody waits for them, so they leave soon. */
function exportingTo(otlpEndpoint: string): NodeJS.ProcessEnv {
  const { OTEL_BSP_SCHEDULE_DELAY = SPANS_DELAY_MS } = process.env;
  return { ...process.env, OTEL_EXPORTER_OTLP_ENDPOINT: otlpEndpoint, OTEL_BSP_SCHEDULE_DELAY };
}
