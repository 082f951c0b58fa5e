import type { LocalCluster } from "@kvasir/cli";
import { afterAll, beforeAll, expect, test } from "vitest";
import { answerOf, chatBody, expectNothingLeft, post, startTiny } from "./support.ts";

let cluster: LocalCluster;
beforeAll(async () => {
  cluster = await startTiny();
}, 60_000);
afterAll(() => cluster?.stop());

const valid = JSON.stringify(chatBody("hi"));

test.each([
  ["a prompt beyond the context", JSON.stringify(chatBody("word ".repeat(5_000))), "messages"],
  ["a temperature of NaN", valid.replace('"temperature":0', '"temperature":NaN'), "body"],
  ["a temperature beyond any number", valid.replace('"temperature":0', '"temperature":1e999'), "temperature"],
  ["10 MB", JSON.stringify(chatBody("x".repeat(10_000_000))), "body"],
  ["broken JSON", valid.slice(0, -3), "body"],
  ["an unknown model", JSON.stringify(chatBody("hi", { model: "gpt-9" })), "model"],
  [
    "invalid UTF-8",
    Buffer.concat([Buffer.from(valid.slice(0, -2)), Buffer.from([0xc3, 0x28]), Buffer.from("}")]),
    "body",
  ],
  ["nothing", "", "body"],
  ["an array", "[]", "body"],
  ["no messages", JSON.stringify({ model: "tiny" }), "messages"],
])("%s is a 400 that names the field", async (_name, body, param) => {
  const response = await post(cluster, body);
  expect(response.status).toBe(400);
  const { error } = await answerOf(response);
  expect(error).toMatchObject({ type: "invalid_request_error", param });
  expect(error.message.length).toBeGreaterThan(10);
});

test("the cluster goes on as if nothing had been sent", async () => {
  expect((await post(cluster, valid)).status).toBe(200);
  await expectNothingLeft(cluster);
});
