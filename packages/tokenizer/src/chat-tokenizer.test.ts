import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ensureTinyModel } from "@kvasir/models";
import { afterAll, beforeAll, expect, test } from "vitest";
import { loadTokenizer } from "./chat-tokenizer.ts";
import { loadModelFacts } from "./model-facts.ts";

let models: string;
let tiny: string;

beforeAll(async () => {
  models = await mkdtemp(join(tmpdir(), "kvasir-tokenizer-"));
  tiny = await ensureTinyModel(models);
});
afterAll(() => rm(models, { recursive: true }));

test("text goes to tokens and back, special tokens have names and no text", async () => {
  const tokenizer = await loadTokenizer(tiny);
  const prompt = tokenizer.renderChat([{ role: "user", content: "Who built the old mill?" }]);
  const ids = await tokenizer.encode(prompt, { addSpecialTokens: false });
  expect(ids[0]).toBe(1);
  expect(tokenizer.tokenText(1)).toBe("<|im_start|>");
  const detokenizer = tokenizer.createDetokenizer();
  expect(detokenizer.push(ids)).toBe("user\nWho built the old mill?\nassistant\n");
  expect(await loadModelFacts(tiny)).toEqual({
    contextLength: 2048,
    vocabSize: tokenizer.vocabSize,
    eosTokenIds: [2, 0],
  });
});

test("the tiny model is the same each time, small, and made again when it is gone", async () => {
  const before = await readFile(join(tiny, "model.safetensors"));
  await rm(tiny, { recursive: true });
  expect(await readFile(join(await ensureTinyModel(models), "model.safetensors"))).toEqual(before);
  expect(before.length).toBeLessThan(3_000_000);
});

test.each([
  ["config.json", '{"max_position_embeddings": "long", "vocab_size": 1}', "max_position_embeddings"],
  ["config.json", "{", "is not JSON"],
  ["tokenizer.json", "{}", "tokenizer.json"],
])("a broken %s is named", async (name, content, part) => {
  const directory = await ensureTinyModel(join(models, `broken-${content.length}`));
  await writeFile(join(directory, name), content);
  const loading = name === "config.json" ? loadModelFacts(directory) : loadTokenizer(directory);
  await expect(loading).rejects.toThrow(expect.objectContaining({ message: expect.stringContaining(part) }));
  await expect(loading).rejects.toThrow(expect.objectContaining({ message: expect.stringContaining(name) }));
});

test("a missing file is named", async () => {
  await expect(loadTokenizer(join(models, "nowhere"))).rejects.toThrow(/tokenizer.json is missing/);
});
