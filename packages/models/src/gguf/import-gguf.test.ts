import { mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadModelFacts, loadTokenizer } from "@kvasir/tokenizer";
import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import sentencePiece from "../fixtures/sentencepiece.json" with { type: "json" };
import { importGguf } from "./import-gguf.ts";
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

test("another architecture has its own keys, window and pre-tokenizer", async () => {
  const renamed = Object.entries(METADATA).map(([key, value]) => [key.replace(/^llama\./, "qwen2."), value]);
  await writeFile(
    path,
    ggufBytes({
      ...Object.fromEntries(renamed),
      "general.architecture": text("qwen2"),
      "qwen2.attention.sliding_window": u32(300),
      "qwen2.rope.scaling.type": text("yarn"),
      "qwen2.rope.scaling.factor": { type: "f32", value: 4 },
      "qwen2.rope.scaling.original_context_length": u32(128),
      "tokenizer.ggml.pre": text("qwen2"),
    }),
  );
  const model = join(directory, "qwen2");
  await importGguf(path, model);
  expect(JSON.parse(await readFile(join(model, "config.json"), "utf8"))).toMatchObject({
    architectures: ["Qwen2ForCausalLM"],
    model_type: "qwen2",
    rope_scaling: { rope_type: "yarn", factor: 4, original_max_position_embeddings: 128 },
  });
  expect((await loadModelFacts(model)).contextLength).toBe(300);
  expect(await (await loadTokenizer(model)).encode("ab12")).toEqual([7, 4, 5]);
});

test("texts begin with the begin token where the file or its pre-tokenizer says so", async () => {
  const encode = async (change: Readonly<Record<string, TestValue>>) => {
    await writeFile(path, ggufBytes({ ...METADATA, ...change }));
    await importGguf(path, join(directory, "begin"));
    const tokenizer = await loadTokenizer(join(directory, "begin"));
    return [await tokenizer.encode("ab"), await tokenizer.encode("ab", { addSpecialTokens: false })];
  };
  const pre = { "tokenizer.ggml.pre": text("llama-bpe") };
  const flag = (value: boolean): Readonly<Record<string, TestValue>> => ({
    "tokenizer.ggml.add_bos_token": { type: "flag", value },
  });
  expect(await encode({})).toEqual([[7], [7]]);
  expect(await encode(flag(true))).toEqual([[0, 7], [7]]);
  expect(await encode(pre)).toEqual([[0, 7], [7]]);
  expect(await encode({ ...pre, ...flag(false) })).toEqual([[7], [7]]);
});

// The vocabulary and the answers are SentencePiece's own, recorded by models/record_sentencepiece.py.
test("a SentencePiece vocabulary encodes and decodes as SentencePiece does", async () => {
  const spm: Readonly<Record<string, TestValue>> = {
    ...METADATA,
    "tokenizer.ggml.model": text("llama"),
    "tokenizer.ggml.pre": text("default"),
    "tokenizer.ggml.tokens": { type: "texts", value: sentencePiece.tokens },
    "tokenizer.ggml.scores": { type: "f32s", value: sentencePiece.scores },
    "tokenizer.ggml.token_type": { type: "i32s", value: sentencePiece.types },
    "tokenizer.ggml.bos_token_id": u32(sentencePiece.bos),
    "tokenizer.ggml.eos_token_id": u32(sentencePiece.eos),
  };
  await writeFile(path, ggufBytes(spm));
  const model = join(directory, "sentencepiece");
  await importGguf(path, model);
  const tokenizer = await loadTokenizer(model);
  for (const { text, ids, decoded } of sentencePiece.texts) {
    expect(await tokenizer.encode(text, { addSpecialTokens: false })).toEqual(ids);
    expect(await tokenizer.encode(text)).toEqual([sentencePiece.bos, ...ids]);
    const detokenizer = tokenizer.createDetokenizer();
    const pieces = ids.map((id) => detokenizer.push([id]));
    expect(pieces.join("") + detokenizer.flush()).toBe(decoded);
    const bytes = Buffer.concat(ids.map((id) => tokenizer.tokenBytes(id)));
    expect(bytes.toString("utf8")).toBe(` ${decoded}`);
  }
});

test.each([
  ["general.architecture", text("mamba"), "architecture mamba is not supported"],
  ["tokenizer.ggml.model", text("t5"), "tokenizer t5 is not supported; supported: gpt2 (byte-level BPE), llama"],
  ["tokenizer.ggml.model", text("llama"), "tokenizer.ggml.scores is missing; expected a list of numbers"],
  ["tokenizer.ggml.pre", text("martian"), "pre-tokenizer martian is not supported"],
  ["llama.block_count", text("two"), "llama.block_count is not a whole number"],
  ["tokenizer.ggml.tokens", u32(3), "tokenizer.ggml.tokens is not a list of texts"],
])("%s of %j is refused by name", async (key, value, message) => {
  await writeFile(path, ggufBytes({ ...METADATA, [key]: value }));
  await expect(importGguf(path, join(directory, "refused"))).rejects.toThrow(`model.gguf: ${message}`);
});

test("damaged files end in one line, never in a huge allocation", async () => {
  const bytes = ggufBytes(METADATA);
  const edit = fc.record({
    at: fc.nat(bytes.length - 1),
    insert: fc.uint8Array({ maxLength: 12 }),
    removed: fc.nat(12),
  });
  const edits = fc.array(edit, { minLength: 1, maxLength: 3 });
  await fc.assert(
    fc.asyncProperty(edits, fc.option(fc.nat(bytes.length)), async (edits, cut) => {
      let damaged = Buffer.from(bytes.subarray(0, cut ?? bytes.length));
      for (const { at, insert, removed } of edits)
        damaged = Buffer.concat([damaged.subarray(0, at), insert, damaged.subarray(at + removed)]);
      await writeFile(path, damaged);
      try {
        await importGguf(path, join(directory, "damaged"));
      } catch (error) {
        expect(error).toMatchObject({ name: "KvasirError", message: expect.not.stringMatching(/[\n\r]/) });
      }
    }),
    { numRuns: 300 },
  );
});
