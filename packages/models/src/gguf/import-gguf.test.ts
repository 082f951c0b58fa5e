import { mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadModelFacts, loadTokenizer } from "@kvasir/tokenizer";
import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import { importGguf } from "./import-gguf.ts";
import { readGgufMetadata } from "./read-metadata.ts";
import { ggufBytes, type TestValue } from "./testing-gguf.ts";

let directory: string;
let path: string;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "kvasir-gguf-"));
  path = join(directory, "model.gguf");
});
afterAll(() => rm(directory, { recursive: true }));

const u32 = (value: number): TestValue => ({ type: "u32", value });
const text = (value: string): TestValue => ({ type: "text", value });

const METADATA: Readonly<Record<string, TestValue>> = {
  "general.architecture": text("llama"),
  "llama.embedding_length": u32(64),
  "llama.feed_forward_length": u32(96),
  "llama.block_count": u32(2),
  "llama.attention.head_count": u32(4),
  "llama.attention.head_count_kv": u32(2),
  "llama.context_length": u32(512),
  "llama.rope.freq_base": { type: "f32", value: 100_000 },
  "tokenizer.ggml.model": text("gpt2"),
  "tokenizer.ggml.pre": text("smollm"),
  "tokenizer.ggml.tokens": { type: "texts", value: ["<s>", "</s>", "a", "b", "1", "2", "Ġ", "ab"] },
  "tokenizer.ggml.token_type": { type: "i32s", value: [3, 3, 1, 1, 1, 1, 1, 1] },
  "tokenizer.ggml.merges": { type: "texts", value: ["a b"] },
  "tokenizer.ggml.bos_token_id": u32(0),
  "tokenizer.ggml.eos_token_id": u32(1),
  "tokenizer.chat_template": text("{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"),
};

test("an imported file is a model directory whose tokenizer follows the metadata", async () => {
  await writeFile(path, ggufBytes(METADATA));
  const model = join(directory, "imported");
  await importGguf(path, model);
  const tokenizer = await loadTokenizer(model);
  // Digits stand alone by the `smollm` pre-tokenizer; `ab` is merged; special tokens are found in text.
  expect(await tokenizer.encode("ab 12</s>")).toEqual([7, 6, 4, 5, 1]);
  expect(tokenizer.renderChat([{ role: "user", content: "ab" }])).toBe("<s>ab");
  expect(await loadModelFacts(model)).toEqual({ contextLength: 512, vocabSize: 8, eosTokenIds: [1] });
  expect((await stat(join(model, "model.gguf"))).ino).toBe((await stat(path)).ino);
  expect(JSON.parse(await readFile(join(model, "config.json"), "utf8"))).toMatchObject({
    head_dim: 16,
    rope_theta: 100_000,
  });
});

test.each([
  ["general.architecture", text("mamba"), "architecture mamba is not supported"],
  ["tokenizer.ggml.model", text("unigram"), "tokenizer unigram is not supported"],
  ["tokenizer.ggml.pre", text("martian"), "pre-tokenizer martian is not supported"],
  ["llama.block_count", text("two"), "llama.block_count is not a whole number"],
  ["tokenizer.ggml.tokens", u32(3), "tokenizer.ggml.tokens is not a list of texts"],
])("%s of %j is refused by name", async (key, value, message) => {
  await writeFile(path, ggufBytes({ ...METADATA, [key]: value }));
  await expect(importGguf(path, join(directory, "refused"))).rejects.toThrow(`model.gguf: ${message}`);
});

test("damaged files end in one line, never in a huge allocation", async () => {
  const bytes = ggufBytes(METADATA);
  await fc.assert(
    fc.asyncProperty(fc.nat(bytes.length - 1), fc.nat(255), fc.nat(bytes.length), async (at, value, cut) => {
      const damaged = Buffer.from(bytes.subarray(0, cut));
      if (at < cut) damaged[at] = value;
      await writeFile(path, damaged);
      try {
        readGgufMetadata(path);
      } catch (error) {
        expect(error).toMatchObject({ name: "KvasirError", message: expect.not.stringContaining("\n") });
      }
    }),
    { numRuns: 300 },
  );
});
