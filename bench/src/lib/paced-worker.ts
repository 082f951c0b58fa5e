import { KvasirError } from "@kvasir/core";
import { DecodeService, KvDtype, RouterService, WorkerRole } from "@kvasir/proto";
import { createClient, createServer } from "@kvasir/rpc";

export interface Pace {
  readonly firstTokenMs: number;
  readonly gapMs: number;
}

export interface PacedWorker {
  readonly address: string;
  /** Opens the line to a router, as a mixed worker of boundless capacity. */
  attach(routerAddress: string, model: string, contextLength: number): Promise<void>;
  close(): Promise<void>;
}

/**
 * A decode service whose tokens come by the clock instead of from a model, so that what is measured is only what stands before it:
 * first token after `firstTokenMs`, then one every `gapMs`.
 */
export async function startPacedWorker(pace: Pace): Promise<PacedWorker> {
  const server = createServer();
  server.add(DecodeService, {
    generate: async (request, call) => {
      const maxTokens = request.sampling?.maxTokens;
      if (maxTokens === undefined)
        throw new KvasirError({ reason: "invalid_request", message: "no sampling", field: "sampling" });
      call.write({ kind: { case: "accepted", value: { reserveMs: 0 } } });
      const start = performance.now();
      for (let index = 0; index < maxTokens && !call.cancelled; index++) {
        const due = start + pace.firstTokenMs + index * pace.gapMs;
        await new Promise((resolve) => setTimeout(resolve, Math.max(0, due - performance.now())));
        call.write({ kind: { case: "tokens", value: { tokens: [{ tokenId: 300 + (index % 64) }] } } });
      }
      call.write({
        kind: { case: "finished", value: { reason: 2, prefillWorkerId: "paced", decodeWorkerId: "paced" } },
      });
    },
  });
  const address = await server.listen("127.0.0.1:0");
  const closers: (() => void)[] = [];
  return {
    address,
    async attach(routerAddress, model, contextLength) {
      const client = createClient(RouterService, routerAddress);
      const stream = client.attach();
      stream.on("error", () => undefined);
      let sequence = 0n;
      const layout = {
        modelRevision: "paced",
        dtype: KvDtype.BF16,
        blockSize: 32,
        layerCount: 1,
        kvHeadCount: 1,
        headSize: 1,
        rope: "none",
        fingerprint: new Uint8Array(16),
      };
      const blockCount = 1 << 24;
      const hello = {
        workerId: "paced",
        role: WorkerRole.MIXED,
        address,
        adminAddress: address,
        model,
        layout,
        blockCount,
        contextLength,
      };
      const load = { freeBlocks: blockCount, prefillTokensPerSecond: 10_000, decodeStepMs: pace.gapMs };
      stream.write({ epoch: 1n, sequence: ++sequence, kind: { case: "hello", value: hello } });
      const report = () => stream.write({ epoch: 1n, sequence: ++sequence, kind: { case: "load", value: load } });
      report();
      const timer = setInterval(report, 500);
      stream.resume();
      closers.push(() => {
        clearInterval(timer);
        stream.cancel();
        client.channel.close();
      });
      for (let tries = 0; tries < 100; tries++) {
        const cluster = await client.describeCluster({});
        if (cluster.ready) return;
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
      throw new Error(`the router at ${routerAddress} did not become ready with one attached worker`);
    },
    async close() {
      for (const close of closers) close();
      await server.close(100);
    },
  };
}
