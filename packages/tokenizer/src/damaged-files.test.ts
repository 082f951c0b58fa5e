import { copyFile, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import { loadTokenizer } from "./chat-tokenizer.ts";
import { loadModelFacts } from "./model-facts.ts";

const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
const FILES: Readonly<Record<string, object>> = {
  "tokenizer.json": {
    version: "1.0",
    added_tokens: [
      { id: 3, content: "<|end|>", single_word: false, lstrip: false, rstrip: false, normalized: false, special: true },
    ],
    normalizer: { type: "NFC" },
    pre_tokenizer: { type: "Sequence", pretokenizers: [{ type: "Digits", individual_digits: true }, byteLevel] },
    post_processor: null,
    decoder: byteLevel,
    model: { type: "BPE", unk_token: null, vocab: { a: 0, b: 1, ab: 2, "<|end|>": 3, "1": 4 }, merges: ["a b"] },
  },
  "tokenizer_config.json": {
    bos_token: "<|end|>",
    eos_token: { content: "<|end|>" },
    chat_template: "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ eos_token }}",
  },
  "config.json": { model_type: "llama", max_position_embeddings: 64, vocab_size: 5, eos_token_id: 3 },
  "generation_config.json": { eos_token_id: [3] },
};

let valid: string;
let damaged: string;
beforeAll(async () => {
  valid = await mkdtemp(join(tmpdir(), "kvasir-valid-"));
  damaged = await mkdtemp(join(tmpdir(), "kvasir-damaged-"));
  for (const [name, value] of Object.entries(FILES)) await writeFile(join(valid, name), JSON.stringify(value));
});
afterAll(async () => {
  await rm(valid, { recursive: true });
  await rm(damaged, { recursive: true });
});

async function loadAndUse(directory: string): Promise<void> {
  const tokenizer = await loadTokenizer(directory);
  await tokenizer.encode("ab 1<|end|>");
  if (tokenizer.hasChatTemplate) tokenizer.renderChat([{ role: "user", content: "ab" }]);
  tokenizer.createDetokenizer().push([0, 1, 2, 3, 4, 1_000_000]);
  await loadModelFacts(directory);
}

test("the files are sound as they are", async () => {
  await loadAndUse(valid);
});

/** Bytes that JSON gives meaning, and numbers that programs stumble over. */
const HOSTILE = ['"', "{", "[", "}", "null", "-1", "1e999", "4294967296", "9007199254740993", '"\\ud800"', "[[[[[[[["];
const insertion = fc.oneof(
  fc.constantFrom(...HOSTILE).map((text) => Buffer.from(text)),
  fc.uint8Array({ maxLength: 8 }).map((bytes) => Buffer.from(bytes)),
);
const edit = fc.record({ at: fc.nat(1000), insertion, removed: fc.nat(10) });

async function expectOneLineOrSuccess(): Promise<void> {
  try {
    await loadAndUse(damaged);
  } catch (error) {
    expect(error).toMatchObject({ name: "KvasirError", message: expect.not.stringMatching(/[\n\r]/) });
  }
}

test.each(Object.keys(FILES))("a damaged %s ends in one line or works", async (name) => {
  for (const file of Object.keys(FILES)) await copyFile(join(valid, file), join(damaged, file));
  const original = await readFile(join(valid, name));
  await fc.assert(
    fc.asyncProperty(fc.array(edit, { minLength: 1, maxLength: 3 }), async (edits) => {
      let bytes = original;
      for (const { at, insertion, removed } of edits) {
        const begin = at % bytes.length;
        bytes = Buffer.concat([bytes.subarray(0, begin), insertion, bytes.subarray(begin + removed)]);
        if (bytes.length === 0) break;
      }
      await writeFile(join(damaged, name), bytes);
      await expectOneLineOrSuccess();
    }),
    { numRuns: 300 },
  );
});

/** The same value with its `at`-th part (an object, a list or what they hold) replaced. */
function withPart(value: unknown, at: number, replacement: unknown): unknown {
  let index = -1;
  const visit = (part: unknown): unknown => {
    index += 1;
    if (index === at) return replacement;
    if (Array.isArray(part)) return part.map(visit);
    if (part === null || typeof part !== "object") return part;
    return Object.fromEntries(Object.entries(part).map(([key, inner]) => [key, visit(inner)]));
  };
  return visit(value);
}

const hostileValue = fc.oneof(
  fc.constantFrom(0, -1, 0.5, 1e300, 4_294_967_295, 4_294_967_296, Number.MAX_SAFE_INTEGER, 50_000_000),
  fc.constantFrom(null, true, "", "a b", "\ud800", "((((", "a".repeat(10_000)),
  fc.constantFrom([], {}, [[]], { type: "Sequence" }, { type: "BPE" }),
);

test.each(Object.keys(FILES))("a %s with a part of another kind ends in one line or works", async (name) => {
  for (const file of Object.keys(FILES)) await copyFile(join(valid, file), join(damaged, file));
  await fc.assert(
    fc.asyncProperty(fc.nat(60), hostileValue, async (at, replacement) => {
      await writeFile(join(damaged, name), JSON.stringify(withPart(FILES[name], at, replacement)));
      await expectOneLineOrSuccess();
    }),
    { numRuns: 300 },
  );
});
