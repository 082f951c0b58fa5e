import { tmpdir } from "node:os";
import { join } from "node:path";
import { ensureTinyModel } from "@kvasir/models";
import fc from "fast-check";
import { Tokenizer } from "tokenizers";
import { beforeAll, expect, test } from "vitest";
import { type ChatTokenizer, loadTokenizer } from "./chat-tokenizer.ts";
import { createByteDetokenizer, createWindowDetokenizer } from "./detokenizer.ts";

let tokenizer: ChatTokenizer;
let binding: Tokenizer;

beforeAll(async () => {
  const directory = await ensureTinyModel(join(tmpdir(), "kvasir-tokenizer-test"));
  tokenizer = await loadTokenizer(directory);
  binding = Tokenizer.fromFile(join(directory, "tokenizer.json"));
});

test("pieces of any tokens, split anyhow, add up to the whole decode", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.array(fc.nat(898), { maxLength: 5 }), { maxLength: 20 }), async (batches) => {
      const detokenizer = tokenizer.createDetokenizer();
      const text = batches.map((batch) => detokenizer.push(batch)).join("") + detokenizer.flush();
      expect(text).toBe(await binding.decode(batches.flat(), true));
    }),
    { numRuns: 300 },
  );
});

test("a character is shown when its last byte has come, never before", async () => {
  const ids = await tokenizer.encode("a🌊é", { addSpecialTokens: false });
  const detokenizer = tokenizer.createDetokenizer();
  const pieces = ids.map((id) => detokenizer.push([id]));
  expect(pieces.join("") + detokenizer.flush()).toBe("a🌊é");
  expect(pieces.every((piece) => !piece.includes("\ufffd"))).toBe(true);
});

test("an unfinished character becomes one replacement at the end", () => {
  const detokenizer = createByteDetokenizer([Uint8Array.of(0xf0, 0x9f), Uint8Array.of(0x41)]);
  expect(detokenizer.push([0])).toBe("");
  expect(detokenizer.flush()).toBe("\ufffd");
  const broken = createByteDetokenizer([Uint8Array.of(0xf0, 0x9f), Uint8Array.of(0x41)]);
  expect(broken.push([0, 1])).toBe("\ufffdA");
});

test("for decoders that look at neighbours, the window gives the same text as the whole", () => {
  // Like SentencePiece: a leading space of the text is dropped, the others stay.
  const decode = (tokens: string[]) => tokens.join("").replaceAll("▁", " ").replace(/^ /, "");
  fc.assert(
    fc.property(fc.array(fc.constantFrom("▁a", "b", "▁", "c▁", "é")), (tokens) => {
      const detokenizer = createWindowDetokenizer((id) => tokens[id], decode);
      const text = tokens.map((_, id) => detokenizer.push([id])).join("") + detokenizer.flush();
      expect(text).toBe(decode(tokens));
    }),
  );
});
