import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { ensureTinyModel } from "@kvasir/models";
import type { SamplingParamsSchema } from "@kvasir/proto";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { generate } from "./testing/harness.ts";
import { SIDECAR_BINARY, startRealWorker } from "./testing/real-worker.ts";

type RealWorker = Awaited<ReturnType<typeof startRealWorker>>;
type Sampling = MessageInitShape<typeof SamplingParamsSchema>;

const SAMPLINGS: readonly (readonly [string, Sampling])[] = [
  ["greedy", { temperature: 0 }],
  ["seeded", { temperature: 1.2, seed: 77n, topP: 0.95, topK: 50 }],
  [
    "penalties on output and prompt",
    { temperature: 1, seed: 3n, repetitionPenalty: 1.3, presencePenalty: 0.7, frequencyPenalty: 0.6 },
  ],
  [
    "min_tokens, stop tokens and bad words",
    {
      temperature: 1.5,
      seed: 5n,
      minTokens: 20,
      stopTokenIds: Array.from({ length: 60 }, (_, index) => index * 3),
      badWords: [{ tokenIds: [101] }, { tokenIds: [40, 41] }],
    },
  ],
  [
    "a constraint",
    {
      temperature: 1,
      seed: 9n,
      stopTokenIds: [0],
      constraint: { kind: { case: "regex", value: "([a-z]{2,5} ){3,9}end" } },
    },
  ],
];

describe.skipIf(!existsSync(SIDECAR_BINARY))("a request that another worker began", () => {
  let prefill: RealWorker;
  let decode: RealWorker;
  let mixed: RealWorker;

  beforeAll(async () => {
    const model = await ensureTinyModel(fileURLToPath(new URL("../../../.cache/models", import.meta.url)));
    [prefill, decode, mixed] = await Promise.all([
      startRealWorker("prefill", "prefill", { model }),
      startRealWorker("decode", "decode", { model }),
      startRealWorker("mixed", "mixed", { model, stepTokenCount: 16 }),
    ]);
  });
  afterAll(() => Promise.all([prefill, decode, mixed].map((worker) => worker?.stop())));

  test.each(SAMPLINGS)("goes on with the same tokens, wherever it was cut: %s", async (_name, sampling) => {
    const request = { sampling: { maxTokens: 40, ...sampling } };
    const whole = await generate({ prefill, decode, promptTokenCount: 45, change: request }).result;
    expect(whole.error).toBeUndefined();
    expect(whole.tokenIds.length).toBeGreaterThan(4);
    for (const sentCount of [1, 2, Math.floor(whole.tokenIds.length / 2), whole.tokenIds.length - 1]) {
      const resumed = [{ choiceIndex: 0, tokenIds: whole.tokenIds.slice(0, sentCount) }];
      const change = { ...request, resumed };
      const rest = await Promise.all([
        generate({ prefill, decode, promptTokenCount: 45, change }).result,
        generate({ decode: mixed, promptTokenCount: 45, change }).result,
        // Without a prefill worker the decode worker computes the prompt, too.
        generate({ decode, promptTokenCount: 45, change }).result,
      ]);
      for (const { error, tokenIds, finished } of rest) {
        expect(error).toBeUndefined();
        expect(tokenIds).toEqual(whole.tokenIds.slice(sentCount));
        expect(finished?.reason).toBe(whole.finished?.reason);
      }
    }
  });

  test("each of several answers goes on at its own token, and those that have ended do not", async () => {
    const request = { sampling: { temperature: 1, seed: 4n, maxTokens: 24 }, choiceCount: 4 };
    const whole = await generate({ decode: mixed, promptTokenCount: 37, change: request }).result;
    const sent = [24, 5, 0, 11];
    const resumed = sent.flatMap((count, choiceIndex) => {
      const tokenIds = whole.choices.get(choiceIndex)?.slice(0, count) ?? [];
      return count === 0 ? [] : [{ choiceIndex, tokenIds, ended: count === 24 }];
    });
    for (const where of [{ decode: mixed }, { prefill, decode }, { decode }]) {
      const rest = await generate({ ...where, promptTokenCount: 37, change: { ...request, resumed } }).result;
      expect(rest.error).toBeUndefined();
      expect(rest.choices.has(0)).toBe(false);
      for (const choice of [1, 2, 3]) {
        expect(rest.choices.get(choice)).toEqual(whole.choices.get(choice)?.slice(sent[choice]));
      }
    }
  });

  test("what cannot be resumed is refused by its name", async () => {
    const sampling = { maxTokens: 4 };
    for (const resumed of [
      [{ choiceIndex: 0, tokenIds: [1, 2, 3, 4] }],
      [{ choiceIndex: 1, tokenIds: [1] }],
      [{ choiceIndex: 0, tokenIds: [4_000_000] }],
      [{ choiceIndex: 0, tokenIds: [1], ended: true }],
    ]) {
      const { error } = await generate({ decode: mixed, change: { sampling, resumed } }).result;
      expect(error).toMatchObject({ reason: "invalid_request", field: "resumed" });
    }
  });
});
