import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { trace } from "@opentelemetry/api";
import { SILENT } from "../log.ts";
import { DEAF_METER, type RequestMeter } from "../request-meter.ts";
import { sidecarLauncher } from "../sidecar/sidecar-process.ts";
import { socketPath } from "../socket-path.ts";
import { type Role, Worker } from "../worker.ts";
import type { RunningWorker } from "./harness.ts";

export const SIDECAR_BINARY =
  process.env.KVASIR_SIDECAR_BINARY ??
  fileURLToPath(new URL("../../../../services/sidecar/target/release/kvasir-sidecar", import.meta.url));

/** Counts nothing. */
export const DEAF = DEAF_METER;

let lastEpoch = 0;

/** A worker in this process with the real sidecar beside it. */
export async function startRealWorker(
  workerId: string,
  role: Role,
  options: {
    readonly model: string;
    readonly stepTokenCount?: number;
    readonly kvBytes?: number;
    readonly swapBytes?: number;
    readonly kvDtype?: string;
    readonly codecProfile?: string;
    /** Where peers reach its KV; absent: where it listens. */
    readonly advertiseHost?: string;
    readonly transferListen?: string;
    readonly requests?: RequestMeter;
    readonly blockSize?: number;
    /** Default: one. */
    readonly threads?: number;
    /** Default: `SIDECAR_BINARY`. */
    readonly binary?: string;
  },
): Promise<RunningWorker & { readonly stop: () => Promise<void> }> {
  const stateDir = mkdtempSync(join(tmpdir(), "real-worker-"));
  const command = {
    binary: options.binary ?? SIDECAR_BINARY,
    role,
    workerId,
    model: options.model,
    socketPath: (epoch: bigint) => socketPath(stateDir, workerId, epoch),
    transferListen: options.transferListen ?? "127.0.0.1:0",
    advertiseHost: options.advertiseHost,
    kvBytes: options.kvBytes ?? 4 * 2 ** 20,
    swapBytes: options.swapBytes,
    blockSize: options.blockSize ?? 16,
    kvDtype: options.kvDtype ?? "f32",
    shards: 1,
    weights: "stored",
    threads: options.threads ?? 1,
    cpus: undefined,
    stepTokenMax: 2048,
    codecProfile: options.codecProfile,
  };
  const worker = new Worker({
    workerId,
    role,
    launch: sidecarLauncher(command, SILENT),
    nextEpoch: async () => ++lastEpoch,
    limits: {
      stepTokenCount: options.stepTokenCount ?? 64,
      sequenceCountMax: 32,
      pinnedShareMax: 0.7,
      waitingCountMax: 1_000,
      cachesPrefixes: true,
    },
    leaseMs: 5_000,
    admissionWaitMs: 10_000,
    stepStallMs: 10_000,
    tracer: trace.getTracer("test"),
    log: SILENT,
    onStep: () => undefined,
    onLocalPrefill: () => undefined,
    requests: options.requests ?? DEAF_METER,
  });
  const address = await worker.start("127.0.0.1:0");
  return { worker, address, stop: () => worker.stop() };
}
