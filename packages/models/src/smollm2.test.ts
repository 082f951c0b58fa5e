import { existsSync } from "node:fs";
import { join } from "node:path";
import { loadTokenizer } from "@kvasir/tokenizer";
import { expect, test } from "vitest";
import fixture from "./fixtures/smollm2.json" with { type: "json" };

const cacheDir = process.env.KVASIR_CACHE ?? join(import.meta.dirname, "../../../.cache");
const directory = join(cacheDir, "models", "smollm2");

// Answers recorded from transformers by models/check_import.py. `npm test` fetches the model; a bare vitest run may not have it.
test.runIf(existsSync(directory))("SmolLM2 as imported tokenizes and renders as transformers does", async () => {
  const tokenizer = await loadTokenizer(directory);
  for (const { text, ids } of fixture.texts) {
    expect(await tokenizer.encode(text, { addSpecialTokens: false })).toEqual(ids);
  }
  for (const { messages, rendered } of fixture.chats) expect(tokenizer.renderChat(messages)).toBe(rendered);
});
