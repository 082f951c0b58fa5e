import { once } from "node:events";
import type { KvasirError } from "@kvasir/core";
import {
  DecodeService,
  FinishReason,
  type GenerateRequest,
  PlacementMode,
  type PlaceRequest,
  RouterService,
} from "@kvasir/proto";
import { createServer, messages } from "@kvasir/rpc";

/** What one generation does: sends these batches, then ends. */
export interface Script {
  readonly batches: readonly (readonly number[])[];
  readonly gapMs?: number;
  /** Fails with this reason after so many batches. */
  readonly failAfter?: { readonly batchCount: number; readonly error: KvasirError };
  readonly finish?: "stop" | "length";
}

/** A router and a decode worker over real gRPC that follow a script; for faults that real ones cannot be asked for. */
export async function startFakeUpstream(scripts: readonly Script[]) {
  const seen = {
    generates: [] as GenerateRequest[],
    places: [] as PlaceRequest[],
    cancelled: 0,
    placeEnded: 0,
    sent: 0,
  };
  const worker = createServer();
  worker.add(DecodeService, {
    generate: async (request, call) => {
      const script = scripts[Math.min(seen.generates.length, scripts.length - 1)];
      seen.generates.push(request);
      const cancelled = new Promise<void>((resolve) => call.once("cancelled", resolve));
      void cancelled.then(() => {
        seen.cancelled++;
      });
      call.write({ kind: { case: "accepted", value: { reserveMs: 0 } } });
      let sent = 0;
      for (const batch of script?.batches ?? []) {
        if (script?.failAfter?.batchCount === sent) throw script.failAfter.error;
        if (call.cancelled) return;
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
      call.write({ kind: { case: "finished", value: { reason, kvBytesMoved: 77n, timings: { decodeMs: 5 } } } });
    },
  });
  const workerAddress = await worker.listen("127.0.0.1:0");
  const router = createServer();
  router.add(RouterService, {
    place: async (call) => {
      for await (const request of messages(call)) {
        seen.places.push(request);
        if (request.kind.case === "firstToken") continue;
        const ref = (workerId: string) => ({ workerId, epoch: 1n, address: workerAddress });
        const placed = {
          mode: PlacementMode.SPLIT,
          prefill: ref("p0"),
          decode: ref("d0"),
          predictedTtftMs: 9,
          reason: "only one",
        };
        call.write({ kind: { case: "placed", value: placed } });
      }
      seen.placeEnded++;
    },
    attach: async () => undefined,
    describeCluster: async () => ({ ready: true }),
  });
  const routerAddress = await router.listen("127.0.0.1:0");
  return {
    seen,
    /** Stands for the cluster's state: one router. */
    state: {
      watch: (_kind: string, onChange: (records: never[]) => void) => {
        onChange([{ routerId: "r0", address: routerAddress, adminAddress: routerAddress }] as never[]);
        return () => undefined;
      },
    },
    async close() {
      await Promise.all([worker.close(50), router.close(50)]);
    },
  };
}
