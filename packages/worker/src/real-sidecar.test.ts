import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { ensureTinyModel } from "@kvasir/models";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { generate, type RunningWorker, refOf } from "./testing/harness.ts";
import { eventually } from "./testing/quiet.ts";
import { SIDECAR_BINARY, startRealWorker } from "./testing/real-worker.ts";

type RealWorker = Awaited<ReturnType<typeof startRealWorker>>;

async function expectNothingHeld(...workers: RunningWorker[]): Promise<void> {
  for (const { worker } of workers) {
    await eventually(() => {
      const incarnation = worker.supervisor.current;
      const { used, reserved, orphaned } = incarnation?.audit() ?? {};
      expect({ used, reserved, orphaned, leases: incarnation?.leases.size }).toEqual({
        used: 0,
        reserved: 0,
        orphaned: 0,
        leases: 0,
      });
    });
    const stats = await worker.supervisor.current?.kernel.stats();
    expect(stats).toMatchObject({ exportsOpen: 0, fetchesRunning: 0, pullsRunning: 0 });
  }
}

describe.skipIf(!existsSync(SIDECAR_BINARY))("with real sidecars", () => {
  let model: string;
  let prefill: RealWorker;
  let decode: RealWorker;
  let mixed: RealWorker;

  beforeAll(async () => {
    model = await ensureTinyModel(fileURLToPath(new URL("../../../.cache/models", import.meta.url)));
    [prefill, decode, mixed] = await Promise.all([
      startRealWorker("prefill", "prefill", { model }),
      startRealWorker("decode", "decode", { model }),
      startRealWorker("mixed", "mixed", { model, stepTokenCount: 16 }),
    ]);
  });
  afterAll(() => Promise.all([prefill, decode, mixed].map((worker) => worker?.stop())));

  test("the same prompt, greedy and seeded, gives the same tokens through mixed and through prefill and decode", async () => {
    for (const [temperature, promptTokenCount] of [
      [0, 1],
      [0, 16],
      [0, 200],
      [0.9, 33],
      [1.5, 150],
    ] as const) {
      const change = { sampling: { temperature, seed: 11n, maxTokens: 24 } };
      const [aggregated, split] = await Promise.all([
        generate({ decode: mixed, promptTokenCount, change }).result,
        generate({ prefill, decode, promptTokenCount, change }).result,
      ]);
      expect([aggregated.error, split.error]).toEqual([undefined, undefined]);
      expect(split.tokenIds).toHaveLength(24);
      expect(split.tokenIds).toEqual(aggregated.tokenIds);
    }
    await expectNothingHeld(prefill, decode, mixed);
  });

  test("decode computes no prompt token and receives exactly the prompt's KV", async () => {
    const incarnation = decode.worker.supervisor.current;
    const before = await incarnation?.kernel.stats();
    const { finished } = await generate({ prefill, decode, promptTokenCount: 77, maxTokens: 5 }).result;
    const after = await incarnation?.kernel.stats();
    const bytes = BigInt(77 * (incarnation?.description.kvBytesPerToken ?? 0));
    expect(finished?.kvBytesMoved).toBe(bytes);
    expect((after?.kvBytesReceived ?? 0n) - (before?.kvBytesReceived ?? 0n)).toBe(bytes);
    expect(after?.promptTokensComputed).toBe(0n);
    expect((after?.decodeTokensComputed ?? 0n) - (before?.decodeTokensComputed ?? 0n)).toBe(4n);
  });

  test("many at once, some cancelled at random moments: the rest come out right and nothing is held", async () => {
    const alone = new Map<number, readonly number[]>();
    const size = (index: number) => ({ promptTokenCount: 1 + ((index * 53) % 180), maxTokens: 1 + ((index * 7) % 30) });
    for (let index = 0; index < 12; index++) {
      alone.set(index, (await generate({ decode: mixed, ...size(index) }).result).tokenIds);
    }
    await Promise.all(
      Array.from({ length: 48 }, async (_, number) => {
        const index = number % 12;
        const target = number % 2 ? { decode: mixed } : { prefill, decode };
        const generation = generate({ ...target, ...size(index) });
        const cancelled = number % 8 === 3;
        if (cancelled) setTimeout(() => generation.cancel(), (number * 13) % 70);
        const { tokenIds, error } = await generation.result;
        if (!cancelled) expect(error).toBeUndefined();
        expect(tokenIds).toEqual(alone.get(index)?.slice(0, error ? tokenIds.length : undefined));
      }),
    );
    await expectNothingHeld(prefill, decode, mixed);
  });

  test("a killed sidecar ends its requests as unavailable; the next incarnation gives the same tokens as before", async () => {
    const request = { prefill, decode, promptTokenCount: 100, maxTokens: 40 };
    const expected = await generate(request).result;
    for (const victim of [decode, prefill]) {
      const before = refOf(victim).epoch;
      const sidecarPid = victim.worker.supervisor.sidecarPid ?? 0;
      // It stands still, so that nothing ends before.
      process.kill(sidecarPid, "SIGSTOP");
      const generation = generate({ ...request, promptTokenCount: 500, maxTokens: 300 });
      await generation.accepted;
      process.kill(sidecarPid, "SIGKILL");
      expect((await generation.result).error).toMatchObject({ reason: "unavailable" });
      await eventually(() => expect(refOf(victim).epoch).toBeGreaterThan(before));
      expect(await generate(request).result).toMatchObject({ tokenIds: expected.tokenIds, error: undefined });
    }
    await expectNothingHeld(prefill, decode);
  });
});
