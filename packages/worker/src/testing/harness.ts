import type { MessageInitShape } from "@bufbuild/protobuf";
import type { KvasirError } from "@kvasir/core";
import {
  type ChoiceSoFarSchema,
  DecodeService,
  type GenerateFinished,
  type GenerateResponse,
  type KvAccuracy,
  PlacementMode,
  type PlacementSchema,
  type SamplingParamsSchema,
} from "@kvasir/proto";
import { createClient, errorFromService, metadataFromContext } from "@kvasir/rpc";
import { FakeKernel, type FakeKernelOptions, type Faults, noFaults } from "@kvasir/testkit/fake-kernel";
import { ROOT_CONTEXT, type Span, type Tracer, trace } from "@opentelemetry/api";
import { SILENT } from "../log.ts";
import type { LocalPrefillCause } from "../metrics.ts";
import { DEAF_METER, type RequestMeter } from "../request-meter.ts";
import type { LaunchSidecar } from "../sidecar/sidecar-process.ts";
import { type Role, Worker } from "../worker.ts";

/** A worker that requests can be sent to. */
export interface RunningWorker {
  readonly worker: Worker;
  readonly address: string;
}

export interface TestWorker extends RunningWorker {
  /** Applies to this and all later incarnations. */
  readonly faults: Faults;
  /** The fake of the current incarnation. */
  readonly kernel: () => FakeKernel;
  readonly stop: () => Promise<void>;
}

export interface TestWorkerOptions extends Partial<Omit<FakeKernelOptions, "epoch" | "ticketKey" | "faults">> {
  readonly leaseMs?: number;
  readonly admissionWaitMs?: number;
  readonly stepTokenCount?: number;
  readonly stepStallMs?: number;
  readonly waitingCountMax?: number;
  readonly tracer?: Tracer;
  readonly requests?: RequestMeter;
  readonly onLocalPrefill?: (cause: LocalPrefillCause) => void;
}

let lastEpoch = 0;

/** A whole worker in this process, with real sockets, over a fake sidecar. */
export async function startTestWorker(
  workerId: string,
  role: Role,
  options: TestWorkerOptions = {},
): Promise<TestWorker> {
  const faults = noFaults();
  let kernel: FakeKernel | undefined;
  const launch: LaunchSidecar = async ({ epoch, ticketKey }) => {
    const started = new FakeKernel({ ...options, epoch, ticketKey, faults });
    await started.start();
    kernel = started;
    const { socketPath, exited } = started;
    return { socketPath, pid: undefined, exited, stop: () => started.kill("stopped") };
  };
  const worker = new Worker({
    workerId,
    role,
    launch,
    nextEpoch: async () => ++lastEpoch,
    limits: {
      stepTokenCount: options.stepTokenCount ?? 32,
      sequenceCountMax: 16,
      pinnedShareMax: 0.7,
      waitingCountMax: options.waitingCountMax ?? 1_000,
      cachesPrefixes: true,
    },
    leaseMs: options.leaseMs ?? 5_000,
    admissionWaitMs: options.admissionWaitMs ?? 300,
    stepStallMs: options.stepStallMs ?? 10_000,
    tracer: options.tracer ?? trace.getTracer("test"),
    log: SILENT,
    onStep: () => undefined,
    onLocalPrefill: options.onLocalPrefill ?? (() => undefined),
    requests: options.requests ?? DEAF_METER,
  });
  const address = await worker.start("127.0.0.1:0");
  return {
    worker,
    address,
    faults,
    kernel: () => {
      if (!kernel) throw new Error("no sidecar was started");
      return kernel;
    },
    stop: () => worker.stop(),
  };
}

export interface GenerateOptions {
  /** Without `worker`, `change` names the placement. */
  readonly decode: Pick<RunningWorker, "address"> & Partial<RunningWorker>;
  readonly prefill?: RunningWorker;
  readonly promptTokenCount?: number;
  readonly maxTokens?: number;
  readonly seed?: bigint;
  readonly stopTokenIds?: number[];
  readonly deadlineMs?: number;
  readonly parent?: Span;
  /** Default: that of a tenant who was never seen, so that nothing of the prompt is cached. */
  readonly tenantScope?: Uint8Array;
  /** Replaces fields of the request. */
  readonly change?: {
    readonly promptTokenIds?: number[];
    readonly tenantScope?: Uint8Array;
    readonly sampling?: MessageInitShape<typeof SamplingParamsSchema>;
    readonly placement?: MessageInitShape<typeof PlacementSchema>;
    readonly choiceCount?: number;
    readonly transferId?: Uint8Array;
    readonly adoptsTransfer?: boolean;
    readonly kvAccuracy?: KvAccuracy;
    readonly ttftTargetMs?: number;
    readonly resumed?: MessageInitShape<typeof ChoiceSoFarSchema>[];
  };
}

export interface Generated {
  readonly tokenIds: number[];
  /** The tokens of each answer. */
  readonly choices: ReadonlyMap<number, readonly number[]>;
  readonly accepted: boolean;
  readonly progressCount: number;
  readonly finished: GenerateFinished | undefined;
  /** Tokens of the prompt whose KV was where the rest of it was computed; undefined before the first token. */
  readonly cachedTokenCount: number | undefined;
  /** Tokens whose KV came from another prefill worker. */
  readonly remoteTokenCount: number | undefined;
  readonly error: KvasirError | undefined;
}

export interface RunningGeneration {
  readonly result: Promise<Generated>;
  readonly firstToken: Promise<void>;
  readonly accepted: Promise<void>;
  cancel(): void;
}

let lastScope = 0;

/** A tenant of its own. */
export function freshScope(): Uint8Array {
  const scope = new Uint8Array(16);
  new DataView(scope.buffer).setUint32(0, ++lastScope);
  return scope;
}

/** One request as a gateway makes it. */
export function generate(options: GenerateOptions): RunningGeneration {
  const { decode, prefill, promptTokenCount = 40, maxTokens = 12, seed = 5n, stopTokenIds = [] } = options;
  const client = createClient(DecodeService, decode.address);
  const request = {
    requestId: "request",
    promptTokenIds: Array.from({ length: promptTokenCount }, (_, index) => index % 100),
    sampling: { seed, maxTokens, stopTokenIds },
    placement: {
      mode: prefill ? PlacementMode.SPLIT : PlacementMode.AGGREGATED,
      decode: refOf(decode),
      ...(prefill ? { prefill: refOf(prefill) } : {}),
    },
    tenantScope: options.tenantScope ?? freshScope(),
    ...options.change,
  };
  const settings = {
    ...(options.deadlineMs === undefined ? {} : { deadlineMs: options.deadlineMs }),
    ...(options.parent ? { metadata: metadataFromContext(trace.setSpan(ROOT_CONTEXT, options.parent)) } : {}),
  };
  const call = client.generate(request, settings);
  const firstToken = Promise.withResolvers<void>();
  const accepted = Promise.withResolvers<void>();
  const tokenIds: number[] = [];
  const choices = new Map<number, number[]>();
  let isAccepted = false;
  let progressCount = 0;
  let finished: GenerateFinished | undefined;
  let cachedTokenCount: number | undefined;
  let remoteTokenCount: number | undefined;
  const result = new Promise<Generated>((resolve) => {
    const settle = (error: KvasirError | undefined) => {
      firstToken.resolve();
      accepted.resolve();
      client.channel.close();
      resolve({
        tokenIds,
        choices,
        accepted: isAccepted,
        progressCount,
        finished,
        cachedTokenCount,
        remoteTokenCount,
        error,
      });
    };
    call.on("data", (response: GenerateResponse) => {
      if (response.kind.case === "accepted") {
        isAccepted = true;
        accepted.resolve();
      } else if (response.kind.case === "progress") progressCount++;
      else if (response.kind.case === "tokens") {
        const { tokens, choiceIndex, cached } = response.kind.value;
        if (cached) {
          cachedTokenCount = cached.resident;
          remoteTokenCount = cached.remoteWorker;
        }
        const ids = tokens.map((token) => token.tokenId);
        tokenIds.push(...ids);
        choices.set(choiceIndex, [...(choices.get(choiceIndex) ?? []), ...ids]);
        firstToken.resolve();
      } else if (response.kind.case === "finished") finished = response.kind.value;
    });
    call.on("end", () => settle(undefined));
    call.on("error", (error) => settle(errorFromService(error)));
  });
  return { result, firstToken: firstToken.promise, accepted: accepted.promise, cancel: () => call.cancel() };
}

export function refOf(target: Pick<RunningWorker, "address"> & Partial<RunningWorker>): {
  workerId: string;
  epoch: bigint;
  address: string;
} {
  const epoch = target.worker?.supervisor.current?.epoch ?? 0n;
  return { workerId: target.worker?.workerId ?? "", epoch, address: target.address };
}
