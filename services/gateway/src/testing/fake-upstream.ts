import { once } from "node:events";
import type { KvasirError } from "@kvasir/core";
import {
  DecodeService,
  FinishReason,
  type GenerateRequest,
  type Placement,
  PlacementMode,
  type PlaceRequest,
  RouterService,
} from "@kvasir/proto";
import { createServer, messages } from "@kvasir/rpc";

/** What one generation does: sends these batches, then ends. */
export interface Script {
  readonly batches: readonly (readonly number[])[];
  /** Of the tokens in all batches those are left out that the request has already, as a worker that goes on leaves them out. */
  readonly goesOn?: boolean;
  readonly gapMs?: number;
  /** Fails with this reason after so many batches. */
  readonly failAfter?: { readonly batchCount: number; readonly error: KvasirError };
  readonly finish?: "stop" | "length";
  /** Awaited before anything is sent. */
  readonly before?: () => Promise<unknown>;
  /** Awaited before the batch with this index. */
  readonly beforeBatch?: { readonly index: number; readonly wait: Promise<unknown> };
}

export interface FakeRouterOptions {
  /** Lets every request wait in the queue. Default false. */
  readonly queueForever?: boolean;
  /** Refuses every request. */
  readonly refuse?: KvasirError;
  /** More of every placement. */
  readonly placement?: Partial<Pick<Placement, "serviceClass" | "isBestEffort">>;
}

/** A router and a decode worker over real gRPC that follow a script; for faults that real ones cannot be asked for. */
export async function startFakeUpstream(scripts: readonly Script[], options: FakeRouterOptions = {}) {
  const seen = {
    generates: [] as GenerateRequest[],
    places: [] as PlaceRequest[],
    cancelled: 0,
    placeEnded: 0,
    sent: 0,
    /** How long each generation may still take when it arrives, by its RPC deadline. */
    generateDeadlinesMs: [] as number[],
  };
  const worker = createServer();
  worker.add(DecodeService, {
    generate: async (request, call) => {
      const script = scripts[Math.min(seen.generates.length, scripts.length - 1)];
      seen.generates.push(request);
      seen.generateDeadlinesMs.push(Number(call.getDeadline()) - Date.now());
      const cancelled = new Promise<void>((resolve) => call.once("cancelled", resolve));
      void cancelled.then(() => {
        seen.cancelled++;
      });
      call.write({ kind: { case: "accepted", value: { reserveMs: 0 } } });
      await script?.before?.();
      let sent = 0;
      let known = script?.goesOn ? (request.resumed[0]?.tokenIds.length ?? 0) : 0;
      for (const whole of script?.batches ?? []) {
        const batch = whole.slice(known);
        known -= whole.length - batch.length;
        if (script?.failAfter?.batchCount === sent) throw script.failAfter.error;
        if (call.cancelled) return;
        if (script?.beforeBatch?.index === sent) await Promise.race([script.beforeBatch.wait, cancelled]);
        if (script?.gapMs) await new Promise((resolve) => setTimeout(resolve, script.gapMs));
        const tokens = batch.map((tokenId) => ({ tokenId, logprob: -0.5, topLogprobs: [{ tokenId, logprob: -0.5 }] }));
        if (!call.write({ kind: { case: "tokens", value: { tokens } } }) && !call.cancelled) {
          await Promise.race([once(call, "drain"), cancelled]);
        }
        sent++;
        seen.sent++;
      }
      if (script?.failAfter?.batchCount === sent) throw script.failAfter.error;
      const reason = script?.finish === "stop" ? FinishReason.STOP : FinishReason.LENGTH;
      call.write({
        kind: {
          case: "finished",
          value: { reason, kvBytesMoved: 77n, approximatePromptTokens: 9, timings: { decodeMs: 5 } },
        },
      });
    },
  });
  const workerAddress = await worker.listen("127.0.0.1:0");
  const startRouter = async () => {
    const server = createServer();
    server.add(RouterService, {
      place: async (call) => {
        let isEnded = false;
        const end = () => {
          if (!isEnded) seen.placeEnded++;
          isEnded = true;
        };
        call.once("cancelled", end);
        for await (const request of messages(call)) {
          seen.places.push(request);
          if (request.kind.case === "firstToken" || request.kind.case === "finished") continue;
          if (options.refuse !== undefined) throw options.refuse;
          if (options.queueForever) call.write({ kind: { case: "queued", value: { position: 0 } } });
          else call.write({ kind: { case: "placed", value: { ...placementOn(workerAddress), ...options.placement } } });
        }
        end();
      },
      attach: async () => undefined,
      describeCluster: async () => ({ ready: true, leaderToken: 1n }),
    });
    return { server, address: await server.listen("127.0.0.1:0") };
  };
  let router = await startRouter();
  let announce: (addresses: readonly string[]) => void = () => undefined;
  return {
    seen,
    /** Stands for the cluster's state: the routers that are listed. */
    state: {
      watch: (_kind: string, onChange: (records: never[]) => void) => {
        announce = (addresses) =>
          onChange(addresses.map((address, i) => ({ routerId: `r${i}`, address, adminAddress: address })) as never[]);
        announce([router.address]);
        return () => undefined;
      },
    },
    /** Kills the router and starts another one; both are listed, the dead one first. */
    async replaceRouter() {
      const lost = router;
      router = await startRouter();
      await lost.server.close(0);
      announce([lost.address, router.address]);
    },
    loseRouter: () => router.server.close(0),
    async close() {
      await Promise.all([worker.close(50), router.server.close(50)]);
    },
  };
}

function placementOn(address: string) {
  const ref = (workerId: string) => ({ workerId, epoch: 1n, address });
  const workers = { mode: PlacementMode.SPLIT, prefill: ref("p0"), decode: ref("d0") };
  return { ...workers, predictedTtftMs: 9, reason: "only one" };
}
