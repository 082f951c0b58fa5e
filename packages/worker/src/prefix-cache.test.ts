import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { ensureTinyModel } from "@kvasir/models";
import { PlacementMode } from "@kvasir/proto";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  freshScope,
  type Generated,
  type GenerateOptions,
  generate,
  type RunningWorker,
  refOf,
} from "./testing/harness.ts";
import { eventually } from "./testing/quiet.ts";
import { SIDECAR_BINARY, startRealWorker } from "./testing/real-worker.ts";

type RealWorker = Awaited<ReturnType<typeof startRealWorker>>;

const BLOCK_SIZE = 16;
const STEP_TOKENS = 64;
/** A quarter of a step: what decode computes itself after a hit. */
const HIT_TAIL_MAX = STEP_TOKENS / 4;
/** Tokens of a prompt that need not be computed when the same one was there before. */
const cachedOf = (promptTokenCount: number) => Math.floor((promptTokenCount - 1) / BLOCK_SIZE) * BLOCK_SIZE;

const stats = async ({ worker }: RunningWorker) => {
  const found = await worker.supervisor.current?.kernel.stats();
  return { prompt: Number(found?.promptTokensComputed), received: Number(found?.kvBytesReceived) };
};

/** What one request made each sidecar do. */
async function measured(options: GenerateOptions & { prefill?: RunningWorker; decode: RunningWorker }) {
  const workers = [options.decode, ...(options.prefill ? [options.prefill] : [])];
  const before = await Promise.all(workers.map(stats));
  const result = await generate(options).result;
  expect(result.error).toBeUndefined();
  const after = await Promise.all(workers.map(stats));
  const [decode, prefill] = after.map((counts, index) => ({
    prompt: counts.prompt - (before[index]?.prompt ?? 0),
    received: counts.received - (before[index]?.received ?? 0),
  }));
  return { result, decode, prefill };
}

async function expectNothingHeld(...workers: RunningWorker[]): Promise<void> {
  for (const { worker } of workers) {
    await eventually(() => {
      const { used, reserved, orphaned } = worker.supervisor.current?.audit() ?? {};
      expect({ used, reserved, orphaned }).toEqual({ used: 0, reserved: 0, orphaned: 0 });
      worker.supervisor.current?.engine.scheduler.checkInvariants();
    });
  }
}

/** What is lent is worth fetching however slowly it comes: a model this small is computed while a busy machine moves its KV. */
function computesSlowly({ worker }: RunningWorker): void {
  Object.defineProperty(worker.supervisor.current?.engine.meter, "fearedPromptTokenMs", { value: 1_000 });
}

describe.skipIf(!existsSync(SIDECAR_BINARY))("with real sidecars", () => {
  let model: string;
  let prefill: RealWorker;
  let decode: RealWorker;
  let mixed: RealWorker;
  let kvBytesPerToken: number;

  beforeAll(async () => {
    model = await ensureTinyModel(fileURLToPath(new URL("../../../.cache/models", import.meta.url)));
    [prefill, decode, mixed] = await Promise.all([
      startRealWorker("prefill", "prefill", { model, stepTokenCount: STEP_TOKENS }),
      startRealWorker("decode", "decode", { model, stepTokenCount: STEP_TOKENS }),
      startRealWorker("mixed", "mixed", { model, stepTokenCount: 24 }),
    ]);
    for (const worker of [prefill, decode, mixed]) computesSlowly(worker);
    kvBytesPerToken = mixed.worker.supervisor.current?.description.kvBytesPerToken ?? 0;
  });
  afterAll(() => Promise.all([prefill, decode, mixed].map((worker) => worker?.stop())));

  test("warm and cold, aggregated and split, give the same tokens, and what is cached is not computed", async () => {
    for (const [temperature, promptTokenCount] of [
      [0, 1],
      [0, 16],
      [0, 17],
      [0.9, 200],
      [1.5, 145],
    ] as const) {
      const common = { promptTokenCount, change: { sampling: { temperature, seed: 11n, maxTokens: 24 } } };
      const tenantScope = freshScope();
      const cold = await measured({ ...common, decode: mixed, tenantScope });
      const warm = await measured({ ...common, decode: mixed, tenantScope });
      expect(cold.decode?.prompt).toBe(promptTokenCount);
      expect(warm.decode?.prompt).toBe(promptTokenCount - cachedOf(promptTokenCount));
      expect([cold, warm].map(({ result }) => result.cachedTokenCount)).toEqual([0, cachedOf(promptTokenCount)]);

      const coldSplit = await measured({ ...common, prefill, decode, tenantScope });
      expect([coldSplit.prefill?.prompt, coldSplit.decode?.prompt]).toEqual([promptTokenCount, 0]);
      expect(coldSplit.decode?.received).toBe(promptTokenCount * kvBytesPerToken);
      const warmSplit = await measured({ ...common, prefill, decode, tenantScope });
      for (const { result } of [warm, coldSplit, warmSplit]) expect(result.tokenIds).toEqual(cold.result.tokenIds);
      expect(warmSplit.result.cachedTokenCount).toBe(cachedOf(promptTokenCount));
      // All but less than a block is there: decode asks nobody. Of a prompt without a full block nothing can be there.
      const isHit = cachedOf(promptTokenCount) > 0;
      expect(warmSplit.prefill?.prompt).toBe(isHit ? 0 : promptTokenCount);
      expect(warmSplit.decode?.prompt).toBe(isHit ? promptTokenCount - cachedOf(promptTokenCount) : 0);
    }
    await expectNothingHeld(prefill, decode, mixed);
  });

  test("of a partial hit only the missing tail travels, and prefill computes only what it lacks", async () => {
    const tenantScope = freshScope();
    const text = Array.from({ length: 300 }, (_, index) => (index * 7) % 100);
    const at = (count: number) => ({ tenantScope, change: { promptTokenIds: text.slice(0, count) }, maxTokens: 8 });
    await measured({ ...at(100), prefill, decode });
    const longer = await measured({ ...at(300), prefill, decode });
    expect(longer.prefill?.prompt).toBe(300 - cachedOf(100));
    expect(longer.decode).toEqual({ prompt: 0, received: (300 - cachedOf(101)) * kvBytesPerToken });
    expect(longer.result.cachedTokenCount).toBe(cachedOf(100));
    const alone = await measured({ ...at(300), decode: mixed });
    expect(longer.result.tokenIds).toEqual(alone.result.tokenIds);

    // Prefill has it all, decode nothing: everything travels, nearly nothing is computed.
    const other = await startRealWorker("other", "decode", { model, stepTokenCount: STEP_TOKENS });
    try {
      const moved = await measured({ ...at(300), prefill, decode: other });
      expect(moved.prefill?.prompt).toBe(300 - cachedOf(300));
      expect(moved.decode).toEqual({ prompt: 0, received: 300 * kvBytesPerToken });
      expect(moved.result.tokenIds).toEqual(alone.result.tokenIds);
      await expectNothingHeld(other);
    } finally {
      await other.stop();
    }
    await expectNothingHeld(prefill, decode, mixed);
  });

  test("the next turn of a conversation reuses what was generated, and decode computes a short rest itself", async () => {
    const tenantScope = freshScope();
    const first = Array.from({ length: 100 }, (_, index) => (index * 3) % 90);
    const turn = (promptTokenIds: number[]) => ({ tenantScope, change: { promptTokenIds }, maxTokens: 30 });
    const answer = await measured({ ...turn(first), prefill, decode });
    const second = [...first, ...answer.result.tokenIds, 1, 2, 3];
    const uncached = second.length - cachedOf(second.length - 3);
    expect(uncached).toBeLessThanOrEqual(HIT_TAIL_MAX);
    const next = await measured({ ...turn(second), prefill, decode });
    expect(next.prefill?.prompt).toBe(0);
    expect(next.decode).toEqual({ prompt: uncached, received: 0 });
    const cold = await measured({ ...turn(second), tenantScope: freshScope(), decode: mixed });
    expect(next.result.tokenIds).toEqual(cold.result.tokenIds);
    await expectNothingHeld(prefill, decode, mixed);
  });

  test("a prefill worker fetches what another one has cached, and computes only the rest; where it is gone, all of it", async () => {
    const other = await startRealWorker("prefill-2", "prefill", { model, stepTokenCount: STEP_TOKENS });
    computesSlowly(other);
    try {
      const tenantScope = freshScope();
      const text = Array.from({ length: 400 }, (_, index) => (index * 11) % 95);
      const at = (count: number) => ({ tenantScope, change: { promptTokenIds: text.slice(0, count) }, maxTokens: 8 });
      await measured({ ...at(320), prefill, decode });
      const fetchFrom = (target: RunningWorker, tokenEnd: number) => ({
        placement: {
          ...{ mode: PlacementMode.SPLIT, decode: refOf(decode), prefill: refOf(other) },
          fetch: { holder: refOf(target), tokenEnd },
        },
      });
      const alone = await measured({ ...at(400), decode: mixed });
      const before = await stats(prefill);
      const ask = async (plan: ReturnType<typeof fetchFrom>, scope = tenantScope) => {
        const options = { ...at(400), tenantScope: scope, prefill: other, decode };
        return measured({ ...options, change: { ...options.change, ...plan } });
      };
      const found = await ask(fetchFrom(prefill, 320));
      expect(found.result.tokenIds).toEqual(alone.result.tokenIds);
      expect(found.prefill).toEqual({ prompt: 80, received: 320 * kvBytesPerToken });
      expect(await stats(prefill), "who lends computes nothing").toEqual(before);
      expect([found.result.cachedTokenCount, found.result.remoteTokenCount]).toEqual([0, 320]);

      // Nothing of this tenant is at the holder: it refuses, and all is computed.
      const scope = freshScope();
      const gone = await ask(fetchFrom(prefill, 320), scope);
      expect(gone.result.tokenIds).toEqual(alone.result.tokenIds);
      expect(gone.prefill).toEqual({ prompt: 400, received: 0 });
      // Nor does one that is dead hold anybody up.
      const dead = await startRealWorker("dead", "prefill", { model });
      const plan = fetchFrom(dead, 320);
      await dead.stop();
      const lost = await ask(plan, freshScope());
      expect([lost.result.tokenIds, lost.prefill?.prompt]).toEqual([alone.result.tokenIds, 400]);
      await expectNothingHeld(prefill, other, decode);
    } finally {
      await other.stop();
    }
  });

  test("a decode worker lends a conversation to the prefill worker of its next turn, and mixed workers lend to each other", async () => {
    const other = await startRealWorker("mixed-2", "mixed", { model, stepTokenCount: STEP_TOKENS });
    computesSlowly(other);
    try {
      const tenantScope = freshScope();
      const first = Array.from({ length: 200 }, (_, index) => (index * 13) % 95);
      const answer = await measured({ prefill, decode, tenantScope, change: { promptTokenIds: first }, maxTokens: 50 });
      const second = [...first, ...answer.result.tokenIds, ...Array.from({ length: 70 }, (_, index) => index)];
      const alone = await measured({ decode: mixed, change: { promptTokenIds: second }, maxTokens: 8 });
      // The last token was sampled and never computed.
      const held = Math.floor((200 + 49) / BLOCK_SIZE) * BLOCK_SIZE;
      const fetch = { holder: refOf(decode), tokenEnd: held };
      const turn = (placement: object) => ({
        ...{ tenantScope, maxTokens: 8 },
        change: { promptTokenIds: second, placement: { fetch, ...placement } },
      });
      const split = { mode: PlacementMode.SPLIT, decode: refOf(decode), prefill: refOf(prefill) };
      const next = await measured({ ...turn(split), prefill, decode });
      expect(next.result.tokenIds).toEqual(alone.result.tokenIds);
      // The prompt of the first turn is at both.
      const resident = cachedOf(201);
      expect([next.result.cachedTokenCount, next.result.remoteTokenCount]).toEqual([resident, held - resident]);
      expect(next.prefill?.prompt).toBe(second.length - held);
      expect(next.decode).toEqual({ prompt: 0, received: (second.length - held) * kvBytesPerToken });

      const both = { mode: PlacementMode.AGGREGATED, decode: refOf(other) };
      const local = await measured({ ...turn(both), decode: other });
      expect(local.result.tokenIds).toEqual(alone.result.tokenIds);
      expect([local.result.cachedTokenCount, local.result.remoteTokenCount]).toEqual([0, held]);
      expect(local.decode).toEqual({ prompt: second.length - held, received: held * kvBytesPerToken });
      await expectNothingHeld(prefill, decode, mixed, other);
    } finally {
      await other.stop();
    }
  });

  test("another tenant's text is another text", async () => {
    const scopes = [freshScope(), freshScope()];
    for (const tenantScope of scopes) {
      const { result, decode: computed } = await measured({ decode: mixed, promptTokenCount: 120, tenantScope });
      expect([result.cachedTokenCount, computed?.prompt]).toEqual([0, 120]);
    }
  });

  test("a request that goes on elsewhere finds there what was cached, prompt and output, and gives the same tokens", async () => {
    const tenantScope = freshScope();
    const common = { tenantScope, promptTokenCount: 150, maxTokens: 40 };
    const whole = await measured({ ...common, decode: mixed });
    const resumed = [{ choiceIndex: 0, tokenIds: whole.result.tokenIds.slice(0, 20), ended: false }];
    for (const target of [{ decode: mixed }, { prefill, decode }, { prefill, decode }]) {
      const { result } = await measured({ ...common, ...target, change: { resumed } });
      expect(result.tokenIds).toEqual(whole.result.tokenIds.slice(20));
    }
    await expectNothingHeld(prefill, decode, mixed);
  });

  test("several answers share what is cached, and each keeps its own", async () => {
    const tenantScope = freshScope();
    const ask = (target: RunningWorker) =>
      generate({
        ...{ decode: target, tenantScope, promptTokenCount: 90, maxTokens: 40 },
        change: { choiceCount: 3, sampling: { temperature: 1, seed: 3n, maxTokens: 40 } },
      }).result;
    const answers = (generated: Generated) => [...generated.choices].sort(([a], [b]) => a - b);
    const cold = await ask(mixed);
    const warm = await ask(mixed);
    expect(answers(warm)).toEqual(answers(cold));
    expect(warm.cachedTokenCount).toBe(cachedOf(90));
    await expectNothingHeld(mixed);
  });

  test("under pressure old KV gives way and answers stay right; an incarnation that is lost takes its cache along", async () => {
    const small = await startRealWorker("small", "mixed", {
      model,
      stepTokenCount: STEP_TOKENS,
      kvBytes: 40 * BLOCK_SIZE * kvBytesPerToken,
    });
    try {
      const expected = new Map<number, readonly number[]>();
      const ask = (number: number, decode: RunningWorker, tenantScope: Uint8Array) => {
        const promptTokenIds = Array.from({ length: 130 }, (_, index) => (index * (number + 3)) % 100);
        return generate({ decode, tenantScope, change: { promptTokenIds }, maxTokens: 20 }).result;
      };
      for (let number = 0; number < 8; number++) {
        expected.set(number, (await ask(number, mixed, freshScope())).tokenIds);
      }
      const tenantScope = freshScope();
      for (let round = 0; round < 3; round++) {
        const order = Array.from({ length: 8 }, (_, index) => (index * 5 + round) % 8);
        const results = await Promise.all(order.map((number) => ask(number, small, tenantScope)));
        for (const [index, result] of results.entries()) {
          expect(result.error).toBeUndefined();
          expect(result.tokenIds).toEqual(expected.get(order[index] ?? 0));
        }
      }
      expect(small.worker.supervisor.current?.engine.scheduler.pool.evictedCount).toBeGreaterThan(0);
      await expectNothingHeld(small);
      await ask(0, small, tenantScope);
      expect((await ask(0, small, tenantScope)).cachedTokenCount).toBe(cachedOf(130));

      const epoch = small.worker.supervisor.current?.epoch;
      process.kill(small.worker.supervisor.sidecarPid ?? 0, "SIGKILL");
      await eventually(() => expect(small.worker.supervisor.current?.epoch ?? 0n).toBeGreaterThan(epoch ?? 0n));
      const after = await ask(0, small, tenantScope);
      expect([after.cachedTokenCount, after.tokenIds]).toEqual([0, expected.get(0)]);
    } finally {
      await small.stop();
    }
  });
});
