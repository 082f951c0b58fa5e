import { KvasirError } from "@kvasir/core";
import { DecodeService, RouterService } from "@kvasir/proto";
import { expect, test } from "vitest";
import { createClient } from "./client.ts";
import { errorFromService } from "./errors.ts";
import { messages } from "./messages.ts";
import { createServer } from "./server.ts";

test("a reason, its field and its retry hint survive the wire, on unary calls and on streams", async () => {
  const server = createServer();
  server.add(RouterService, {
    describeCluster: async () => {
      throw new KvasirError({ reason: "overloaded", message: "12 requests wait", retryAfterMs: 250 });
    },
    place: async (call) => {
      for await (const request of messages(call)) {
        call.write({ kind: { case: "queued", value: { position: request.kind.case === "start" ? 3 : 0 } } });
        throw new KvasirError({ reason: "invalid_request", message: "no such model", field: "model" });
      }
    },
    attach: async () => undefined,
  });
  const address = await server.listen("127.0.0.1:0");
  const client = createClient(RouterService, address);

  await expect(client.describeCluster({})).rejects.toMatchObject({ reason: "overloaded", retryAfterMs: 250 });

  const stream = client.place();
  stream.write({ kind: { case: "start", value: { requestId: "r" } } });
  const positions: number[] = [];
  let caught: KvasirError | undefined;
  try {
    for await (const response of messages(stream))
      if (response.kind.case === "queued") positions.push(response.kind.value.position);
  } catch (error) {
    caught = errorFromService(error);
  }
  expect(positions).toEqual([3]);
  expect(caught).toMatchObject({ reason: "invalid_request", field: "model", message: "no such model" });
  client.channel.close();
  await server.close();
});

test("a handler sees that its caller went away", async () => {
  const server = createServer();
  const cancelled = Promise.withResolvers<void>();
  server.add(DecodeService, {
    generate: async (_request, call) => {
      call.write({ kind: { case: "accepted", value: { reserveMs: 1 } } });
      await new Promise<void>((resolve) => call.on("cancelled", resolve));
      cancelled.resolve();
    },
  });
  const address = await server.listen("127.0.0.1:0");
  const client = createClient(DecodeService, address);
  const call = client.generate({ requestId: "r" });
  call.on("error", () => undefined);
  call.once("data", () => call.cancel());
  await cancelled.promise;
  client.channel.close();
  await server.close();
});

test("nobody listening is unavailable", async () => {
  const client = createClient(RouterService, "127.0.0.1:1");
  await expect(client.describeCluster({}, { deadlineMs: 3_000 })).rejects.toMatchObject({ reason: "unavailable" });
  client.channel.close();
});
