import type { ServerResponse } from "node:http";
import type { FastifyReply } from "fastify";
import { httpErrorFrom } from "./http/openai-error.ts";
import { DONE_EVENT, errorEvent, type ResponseShape, type Tail } from "./output/response-shape.ts";
import type { LogprobEntry } from "./output/token-text.ts";

/** Where a request's output goes: one SSE event per batch of tokens, or one body at the end. */
export interface ResponseWriter {
  /** Resolves to nothing, or gives a promise to wait for when the client reads too slowly. */
  piece(text: string, logprobs: readonly LogprobEntry[]): Promise<void> | undefined;
  finish(text: string, finish: string, tail: Tail): void;
  /** Tells an error: by status when nothing was sent yet, else as the stream's last event. Answers with the status told. */
  fail(error: unknown): number;
}

export function streamWriter(reply: FastifyReply, shape: ResponseShape, includeUsage: boolean): ResponseWriter {
  let first = true;
  const { raw } = reply;
  const begin = () => {
    reply.hijack();
    for (const [name, value] of Object.entries(reply.getHeaders())) if (value !== undefined) raw.setHeader(name, value);
    raw.writeHead(200, {
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-cache, no-transform",
      "x-accel-buffering": "no",
    });
  };
  return {
    piece(text, logprobs) {
      if (first) begin();
      const flowing = raw.write(shape.chunk(text, logprobs, first));
      first = false;
      return flowing || raw.destroyed ? undefined : drained(raw);
    },
    finish(text, finish, tail) {
      if (first) begin();
      raw.write(shape.lastChunk(text, finish, first));
      if (includeUsage) raw.write(shape.usageChunk(tail));
      raw.end(DONE_EVENT);
    },
    fail(error) {
      if (first) return sendError(reply, error);
      const { body } = httpErrorFrom(error);
      raw.end(errorEvent(body));
      return 200;
    },
  };
}

/** Resolves when more may be written, or when nobody reads any more. */
function drained(raw: ServerResponse): Promise<void> {
  return new Promise((resolve) => {
    const settle = () => {
      raw.off("drain", settle);
      raw.off("close", settle);
      resolve();
    };
    raw.on("drain", settle);
    raw.on("close", settle);
  });
}

export function wholeWriter(reply: FastifyReply, shape: ResponseShape): ResponseWriter {
  const pieces: string[] = [];
  const entries: LogprobEntry[] = [];
  return {
    piece(text, logprobs) {
      pieces.push(text);
      entries.push(...logprobs);
      return undefined;
    },
    finish(text, finish, tail) {
      reply.send(shape.whole(pieces.join("") + text, entries, finish, tail));
    },
    fail: (error) => sendError(reply, error),
  };
}

/** An error as the whole response. */
export function sendError(reply: FastifyReply, error: unknown): number {
  const { status, body, retryAfterS } = httpErrorFrom(error);
  if (retryAfterS !== undefined) reply.header("retry-after", String(retryAfterS));
  reply.code(status).send(body);
  return status;
}
