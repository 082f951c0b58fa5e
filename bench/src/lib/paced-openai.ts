import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { Pace } from "./paced-worker.ts";

/** An OpenAI upstream whose tokens come by the clock: what a gateway of HTTP upstreams is measured against. */
export async function startPacedOpenAi(pace: Pace, model: string): Promise<{ url: string; close(): void }> {
  const server = createServer((request, response) => {
    if (request.method === "POST") void readJson(request).then((body) => stream(body, response));
    else if (request.url?.startsWith("/v1/models"))
      json(response, { object: "list", data: [{ id: model, object: "model" }] });
    else json(response, { status: "ok" });
  });
  async function stream(body: { max_tokens?: number }, response: ServerResponse): Promise<void> {
    response.socket?.setNoDelay(true);
    response.writeHead(200, { "content-type": "text/event-stream" });
    const start = performance.now();
    for (let index = 0; index < (body.max_tokens ?? 64); index++) {
      const due = start + pace.firstTokenMs + index * pace.gapMs;
      await new Promise((resolve) => setTimeout(resolve, Math.max(0, due - performance.now())));
      const choice = { index: 0, delta: { content: `w${index} ` }, finish_reason: null };
      response.write(
        `data: ${JSON.stringify({ id: "chatcmpl-1", object: "chat.completion.chunk", created: 1, model, choices: [choice] })}\n\n`,
      );
    }
    const last = { index: 0, delta: {}, finish_reason: "length" };
    response.write(
      `data: ${JSON.stringify({ id: "chatcmpl-1", object: "chat.completion.chunk", created: 1, model, choices: [last] })}\n\n`,
    );
    response.end("data: [DONE]\n\n");
  }
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}`,
    close: () => {
      server.closeAllConnections();
      server.close();
    },
  };
}

function json(response: ServerResponse, value: unknown): void {
  response.writeHead(200, { "content-type": "application/json" });
  response.end(JSON.stringify(value));
}

async function readJson(request: IncomingMessage): Promise<{ max_tokens?: number }> {
  const parts: Buffer[] = [];
  for await (const part of request) parts.push(part as Buffer);
  return JSON.parse(Buffer.concat(parts).toString("utf8")) as { max_tokens?: number };
}
