import type { PinRecord } from "@kvasir/state";
import { afterAll, beforeAll, expect, test } from "vitest";
import { answerPins, type PinDeps } from "./pins.ts";
import { GatewayBench } from "./testing/gateway-bench.ts";

const LAYOUT = { exactFingerprint: Uint8Array.of(0, 255), blockSize: 32 };
const PROMPT = Array.from({ length: 100 }, (_, index) => index);

let bench: GatewayBench;
beforeAll(async () => {
  bench = await GatewayBench.create();
});
afterAll(() => bench.telemetry.close());

function world(layouts = [LAYOUT]) {
  const pins = new Map<string, PinRecord>();
  const deps: PinDeps = {
    ...{ model: bench.model, tenantSecret: "secret", bodyLimitBytes: 10_000, layouts: () => layouts },
    pins: {
      put: async (pin) => {
        if (pins.size > 2) return "full";
        pins.set(pin.pinId, pin);
        return "put";
      },
      remove: async (pinId) => pins.delete(pinId),
      list: async () => [...pins.values()],
    },
  };
  const ask = async (method: string, path: string, body?: unknown, authorization?: string) => {
    const bytes = Buffer.from(JSON.stringify(body) ?? "");
    const answer = await answerPins(deps, { method, path, headers: { authorization }, body: async () => bytes });
    return { status: answer?.status, ...(JSON.parse(answer?.body ?? "{}") as { readonly id?: string }) };
  };
  return { pins, ask };
}

test("a prompt is pinned with its whole blocks, once however often it is asked for, and shown and removed by its id", async () => {
  const { pins, ask } = world();
  const first = await ask("POST", "/cache/pins", { prompt: PROMPT, ttl_seconds: 60 });
  expect(first).toMatchObject({ status: 201, model: "tiny", prompt_tokens: 100, blocks: 3 });
  const again = await ask("POST", "/cache/pins", { prompt: PROMPT });
  expect(again).toMatchObject({ id: first.id, expires_at: null });
  const [pin] = pins.values();
  expect(Buffer.from(pin?.layouts[0]?.hashesBase64 ?? "", "base64")).toHaveLength(3 * 16);
  expect(await ask("GET", "/cache/pins")).toMatchObject({ status: 200, pins: [{ id: first.id }] });
  expect(await ask("DELETE", `/cache/pins/${first.id}`)).toMatchObject({ status: 200, deleted: true });
  expect(await ask("DELETE", `/cache/pins/${first.id}`)).toMatchObject({ status: 404 });
});

test("another key or another salt is another pin, with other blocks", async () => {
  const { pins, ask } = world();
  await ask("POST", "/cache/pins", { prompt: PROMPT }, "Bearer one");
  await ask("POST", "/cache/pins", { prompt: PROMPT }, "Bearer two");
  await ask("POST", "/cache/pins", { prompt: PROMPT, cache_salt: "mine" }, "Bearer one");
  expect(new Set([...pins.values()].map(({ layouts }) => layouts[0]?.hashesBase64)).size).toBe(3);
  expect(await ask("POST", "/cache/pins", { prompt: PROMPT }, "Bearer three")).toMatchObject({ status: 409 });
});

test("a chat is pinned as it would be served: its beginning is that of every chat that begins so", async () => {
  const { pins, ask } = world();
  const system = { role: "system", content: "You know the timetable of every ferry. ".repeat(20) };
  await ask("POST", "/cache/pins", { messages: [system] });
  await ask("POST", "/cache/pins", { messages: [system, { role: "user", content: "When does the last one leave?" }] });
  const [alone = "", asked = ""] = [...pins.values()].map(({ layouts }) => layouts[0]?.hashesBase64 ?? "");
  const [short, long] = [Buffer.from(alone, "base64"), Buffer.from(asked, "base64")];
  // All but the block in which the system prompt ends.
  const shared = short.length - 16;
  expect(shared).toBeGreaterThan(16);
  expect(short.subarray(0, shared)).toEqual(long.subarray(0, shared));
});

test("what cannot be pinned is refused with the field that is wrong", async () => {
  const { ask } = world();
  const refused = async (body: unknown) =>
    (await ask("POST", "/cache/pins", body)) as { status: number; error?: unknown };
  expect(await refused({ prompt: PROMPT, ttl_seconds: 0 })).toMatchObject({
    status: 400,
    error: { param: "ttl_seconds" },
  });
  expect(await refused({ prompt: PROMPT, ttl: 1 })).toMatchObject({ status: 400, error: { param: "ttl" } });
  expect(await refused({ prompt: PROMPT.slice(0, 31) })).toMatchObject({ status: 400, error: { param: "prompt" } });
  expect(await refused({ model: "other", prompt: PROMPT })).toMatchObject({ status: 400, error: { param: "model" } });
  expect(await ask("PUT", "/cache/pins")).toMatchObject({ status: 405 });
  expect(await world([]).ask("POST", "/cache/pins", { prompt: PROMPT })).toMatchObject({ status: 503 });
});
