import { connect } from "node:net";
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";
import { GatewayBench, post } from "../testing/gateway-bench.ts";

let gateway: GatewayBench;

beforeAll(async () => {
  gateway = await GatewayBench.create();
});
afterEach(() => gateway.reset());
afterAll(() => gateway.telemetry.close());

const HOST = "\r\nHost: x\r\nConnection: close\r\n";

/** Sends bytes and gives the whole answer. */
function raw(url: string, request: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(Number(new URL(url).port), "127.0.0.1", () => socket.write(request));
    let answer = "";
    socket.setEncoding("utf8").on("data", (text: string) => {
      answer += text;
    });
    socket.on("end", () => resolve(answer));
    socket.on("error", reject);
  });
}

test.each([
  ["no HTTP at all", "garbage\r\n\r\n", 400, { code: "invalid_http" }],
  ["headers without end", `GET / HTTP/1.1${HOST}X: ${"y".repeat(20_000)}\r\n\r\n`, 431, { code: "headers_too_large" }],
  ["a URL that cannot be decoded", `GET /v1/models/%E0%A4%A HTTP/1.1${HOST}\r\n`, 400, { param: "url" }],
  ["no body", `POST /v1/chat/completions HTTP/1.1${HOST}Content-Length: 0\r\n\r\n`, 400, { param: "body" }],
  ["a probe by POST", `POST /live HTTP/1.1${HOST}Content-Length: 0\r\n\r\n`, 405, { code: "method_not_allowed" }],
  [
    "a model by DELETE",
    `DELETE /v1/models/tiny HTTP/1.1${HOST}Content-Length: 0\r\n\r\n`,
    405,
    { code: "method_not_allowed" },
  ],
])("%s is told in OpenAI's shape", async (_name, request, status, error) => {
  const { url } = await gateway.start([{ batches: [] }]);
  const [head = "", body = ""] = (await raw(url, request)).split("\r\n\r\n");
  expect(head).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
  expect(JSON.parse(body)).toMatchObject({ error: { type: "invalid_request_error", ...error } });
});

test("a body that ends in the middle of a character is refused naming body", async () => {
  const { url } = await gateway.start([{ batches: [] }]);
  const text = JSON.stringify({ model: "tiny", messages: [{ role: "user", content: "grüß" }] });
  const bytes = Buffer.from(text, "latin1");
  const headers = { "content-type": "application/json" };
  const response = await fetch(`${url}/v1/chat/completions`, { method: "POST", headers, body: bytes });
  expect(response.status).toBe(400);
  expect(await response.json()).toMatchObject({ error: { param: "body", code: "invalid_utf8" } });
});

test("a body of 10 MB is refused naming body while it is still being sent", async () => {
  const { url } = await gateway.start([{ batches: [] }], { bodyLimitBytes: 8 * 2 ** 20 });
  const content = "x".repeat(10 * 2 ** 20);
  const response = await post(url, { model: "tiny", messages: [{ role: "user", content }] });
  expect(response.status).toBe(400);
  expect(await response.json()).toMatchObject({ error: { param: "body", code: "body_too_large" } });
});

test("a prompt far beyond the context is refused before it is tokenized, with both numbers", async () => {
  const { url } = await gateway.start([{ batches: [] }], { bodyLimitBytes: 8 * 2 ** 20 });
  const tokenizing = vi.spyOn(gateway.model.tokenizer, "encode");
  const response = await post(url, { model: "tiny", messages: [{ role: "user", content: "x y".repeat(2 ** 21) }] });
  expect(response.status).toBe(400);
  expect(await response.json()).toMatchObject({
    error: {
      param: "messages",
      code: "context_length_exceeded",
      message: expect.stringMatching(/at least \d+ tokens; the context of tiny is 2048/),
    },
  });
  expect(tokenizing).not.toHaveBeenCalled();
  tokenizing.mockRestore();
});

test("a model with a slash in its name is found as it is and encoded", async () => {
  const { url } = await gateway.start([{ batches: [] }], { model: { ...gateway.model, name: "maker/tiny" } });
  for (const name of ["maker/tiny", "maker%2Ftiny"]) {
    expect(await (await fetch(`${url}/v1/models/${name}`)).json()).toMatchObject({ id: "maker/tiny" });
  }
  const unknown = await fetch(`${url}/v1/models/maker/huge`);
  expect([unknown.status, await unknown.json()]).toMatchObject([404, { error: { code: "model_not_found" } }]);
});
