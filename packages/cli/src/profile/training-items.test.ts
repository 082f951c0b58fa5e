import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import type { ChatTokenizer, ModelFacts } from "@kvasir/tokenizer";
import { afterAll, expect, test } from "vitest";
import { readDocuments } from "./read-documents.ts";
import { trainingItems } from "./training-items.ts";

const folder = mkdtempSync(join(tmpdir(), "kvasir-documents-"));
afterAll(() => rmSync(folder, { recursive: true }));

test("documents are texts, with or without titles, plain or gzipped; anything else is named", () => {
  const write = (name: string, value: unknown, pack = (text: string): string | Buffer => text) => {
    writeFileSync(join(folder, name), pack(JSON.stringify(value)));
    return join(folder, name);
  };
  const entries = ["one", { title: "Two", text: "two" }, { text: "three", other: 1 }];
  const expected = [{ text: "one" }, { title: "Two", text: "two" }, { text: "three" }];
  expect(readDocuments(write("a.json", entries))).toEqual(expected);
  expect(readDocuments(write("a.json.gz", entries, gzipSync))).toEqual(expected);
  expect(() => readDocuments(write("b.json", ["one", 2]))).toThrow("entry 1");
  expect(() => readDocuments(write("c.json", { text: "one" }))).toThrow("a JSON array");
});

test("prompts take documents from all over the list, each once, and end with what is computed over the others' KV", async () => {
  // A token for each word.
  const tokenizer = {
    renderChat: (_: unknown, options: { documents: readonly { text: string }[] }) =>
      `${options.documents.map(({ text }) => text).join(" ")} ${"end ".repeat(20).trim()}`,
    encode: async (text: string) => text.split(" ").map((word) => (word === "end" ? 0 : Number(word))),
  } as unknown as ChatTokenizer;
  const documents = Array.from({ length: 50 }, (_, index) => ({ text: `${index + 1}` }));
  const items = await trainingItems(tokenizer, { eosTokenIds: [7] } as unknown as ModelFacts, documents, 4);
  expect(items).toHaveLength(4);
  expect(items.flatMap(({ prefix }) => prefix.filter((token) => token > 0))).toEqual(
    Array.from({ length: 24 }, (_, index) => 2 * index + 1),
  );
  expect(items[0]).toMatchObject({ documents: [], suffix: Array(16).fill(0), stop_token_ids: [7] });
  await expect(trainingItems(tokenizer, {} as ModelFacts, documents, 9)).rejects.toThrow(
    "50 documents; 9 prompts take 54",
  );
});
