import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { loadModelFacts } from "./model-facts.ts";

let directory: string;
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "kvasir-facts-"));
});
afterAll(() => rm(directory, { recursive: true }));

test.each([
  [{ model_type: "llama" }, 8192],
  [{ model_type: "mistral", sliding_window: null }, 8192],
  [{ model_type: "mistral", sliding_window: 1024 }, 1024],
  [{ model_type: "mistral" }, 4096],
  [{ model_type: "qwen2", sliding_window: 1024, use_sliding_window: false }, 8192],
  [{ model_type: "qwen3", sliding_window: 1024 }, 8192],
  [{ model_type: "qwen2", sliding_window: 1024, use_sliding_window: true }, 1024],
  [{ model_type: "phi3", sliding_window: 262144 }, 8192],
])("%j has a context of %i tokens", async (config, expected) => {
  const whole = { ...config, max_position_embeddings: 8192, vocab_size: 100, eos_token_id: [2, 3] };
  await writeFile(join(directory, "config.json"), JSON.stringify(whole));
  expect(await loadModelFacts(directory)).toEqual({ contextLength: expected, vocabSize: 100, eosTokenIds: [2, 3] });
});
