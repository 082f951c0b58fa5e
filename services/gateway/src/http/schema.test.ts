import { expect, test } from "vitest";
import { RequestError } from "./openai-error.ts";
import { parseBody } from "./parse-body.ts";
import { ChatRequest, CompletionRequest, checkRequest } from "./schema.ts";

const chat = { model: "m", messages: [{ role: "user", content: "hi" }] };

function refusal(work: () => unknown): { param: string | null; code: string | null; message: string } {
  try {
    work();
  } catch (error) {
    if (error instanceof RequestError) return { param: error.param, code: error.code, message: error.message };
    throw error;
  }
  throw new Error("nothing was refused");
}

test.each([
  ["temperature", 2.1],
  ["temperature", -0.1],
  ["temperature", "hot"],
  ["top_p", 0],
  ["top_p", 1.1],
  ["top_k", -2],
  ["top_k", 1.5],
  ["max_tokens", 0],
  ["max_completion_tokens", -1],
  ["seed", 1.5],
  ["stop", ""],
  ["stop", Array(17).fill("x")],
  ["top_logprobs", 21],
  ["logprobs", 1],
  ["stream", "yes"],
  ["n", 0],
  ["n", 129],
  ["store", true],
  ["service_tier", "scale"],
  ["ignore_eos", 1],
  ["min_p", 1.5],
  ["typical_p", 0],
  ["repetition_penalty", 0],
  ["presence_penalty", 2.5],
  ["frequency_penalty", -3],
  ["logit_bias", { 5: 101 }],
  ["logit_bias", { five: 1 }],
  ["min_tokens", -1],
  ["stop_token_ids", [-1]],
  ["bad_words", [""]],
  ["prompt_logprobs", 21],
  ["include_stop_str_in_output", "yes"],
  ["documents", [{ title: "t" }]],
  ["messages", []],
])("%s: %j is refused by name", (field, value) => {
  const { param } = refusal(() => checkRequest(ChatRequest, { ...chat, [field]: value }));
  expect(param?.split(".")[0]).toBe(field);
});

test.each(["tools", "best_of", "prompt", "guided_grammar", "kv_transfer_params"])("%s is not ignored", (field) => {
  expect(refusal(() => checkRequest(ChatRequest, { ...chat, [field]: 1 }))).toMatchObject({
    param: field,
    code: "unsupported_field",
  });
});

test("a number too large for JSON's readers is refused naming the field", () => {
  const body = parseBody(Buffer.from('{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":1e999}'));
  expect(refusal(() => checkRequest(ChatRequest, body)).param).toBe("temperature");
});

test("a wrong part of a message is named by its path", () => {
  const image = { role: "user", content: [{ type: "image_url", image_url: { url: "x" } }] };
  expect(refusal(() => checkRequest(ChatRequest, { ...chat, messages: [image] })).param).toMatch(
    /^messages\.0\.content/,
  );
  const tool = { role: "tool", content: "x" };
  expect(refusal(() => checkRequest(ChatRequest, { ...chat, messages: [tool] })).param).toBe("messages.0.role");
});

test("what changes nothing is accepted, and null is absent", () => {
  const extra = {
    user: "u",
    metadata: { a: 1 },
    store: false,
    n: 1,
    service_tier: "auto",
    temperature: null,
    stop: null,
  };
  expect(checkRequest(ChatRequest, { ...chat, ...extra })).toMatchObject({ model: "m" });
});

test.each([["text"], [["text"]], [[1, 2, 3]]])("a completion's prompt may be %j", (prompt) => {
  expect(checkRequest(CompletionRequest, { model: "m", prompt }).prompt).toEqual(prompt);
});

test.each([
  ["{", "invalid_json"],
  ["[]", "invalid_json"],
  ['"x"', "invalid_json"],
])("a body of %s is refused as %s", (text, code) => {
  expect(refusal(() => parseBody(Buffer.from(text)))).toMatchObject({ param: "body", code });
});

test("a body that is not UTF-8 is refused, not repaired", () => {
  expect(refusal(() => parseBody(Buffer.from([0x7b, 0xff, 0x7d])))).toMatchObject({
    param: "body",
    code: "invalid_utf8",
  });
});
