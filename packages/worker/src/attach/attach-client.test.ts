import { type AttachRequest, RouterService } from "@kvasir/proto";
import { createServer, messages, type RpcServer } from "@kvasir/rpc";
import { expect, test } from "vitest";
import { SILENT } from "../log.ts";
import { eventually } from "../testing/quiet.ts";
import { AttachClient } from "./attach-client.ts";
import type { AttachState } from "./attach-stream.ts";

async function router(listen = "127.0.0.1:0") {
  const streams: AttachRequest[][] = [];
  const server: RpcServer = createServer();
  server.add(RouterService, {
    place: async () => undefined,
    describeCluster: async () => ({}),
    attach: async (call) => {
      const received: AttachRequest[] = [];
      streams.push(received);
      for await (const request of messages(call)) {
        received.push(request);
        call.write({ acknowledgedSequence: request.sequence });
      }
    },
  });
  const address = await server.listen(listen);
  return { address, streams, close: () => server.close(0) };
}

function state(epoch: bigint): AttachState & { freeBlocks: number } {
  const current = { freeBlocks: 5 };
  return Object.assign(current, {
    epoch,
    hello: { workerId: "w" },
    load: () => ({ freeBlocks: current.freeBlocks }),
  });
}

test("hello first, then load with a gapless sequence: at once on a change but not more often than 20 ms, and at least each second", async () => {
  const { address, streams, close } = await router();
  const current = state(3n);
  const client = new AttachClient(() => current, SILENT);
  client.setRouters([{ routerId: "r", address }]);
  await eventually(() => expect(streams[0]?.length).toBe(2));
  const started = performance.now();
  while (performance.now() - started < 300) {
    current.freeBlocks++;
    client.loadChanged();
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  const burst = (streams[0]?.length ?? 0) - 2;
  expect(burst).toBeGreaterThan(5);
  expect(burst).toBeLessThanOrEqual(16);
  await eventually(() => expect(streams[0]?.length).toBeGreaterThanOrEqual(burst + 4), 2_500);
  const received = streams[0] ?? [];
  expect(received.map((request) => Number(request.sequence))).toEqual(received.map((_, index) => index + 1));
  expect(received.every((request) => request.epoch === 3n)).toBe(true);
  expect(received.map((request) => request.kind.case)).toEqual(
    received.map((_, index) => (index === 0 ? "hello" : "load")),
  );
  await client.close();
  await eventually(() => expect(received.at(-1)?.kind.case).toBe("goodbye"));
  await close();
});

test("after a break, and with each incarnation, it begins again with hello; without a sidecar it stays away", async () => {
  const first = await router();
  let current: AttachState | undefined;
  const client = new AttachClient(() => current, SILENT);
  client.setRouters([{ routerId: "r", address: first.address }]);
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect(first.streams).toEqual([]);
  current = state(1n);
  client.incarnationChanged();
  await eventually(() => expect(first.streams[0]?.length).toBe(2));
  await first.close();
  const second = await router(first.address);
  await eventually(() => expect(second.streams.at(-1)?.[0]?.kind.case).toBe("hello"));
  current = state(2n);
  client.incarnationChanged();
  await eventually(() => expect(second.streams.at(-1)?.[0]).toMatchObject({ epoch: 2n, sequence: 1n }));
  client.setRouters([]);
  await second.close();
});
