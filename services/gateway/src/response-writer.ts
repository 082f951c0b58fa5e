import type { ServerResponse } from "node:http";
import type { FastifyReply } from "fastify";
import { httpErrorFrom } from "./http/openai-error.ts";
import { DONE_EVENT, errorEvent, type ResponseShape, type Tail } from "./output/response-shape.ts";
import type { LogprobEntry } from "./output/token-text.ts";

/** Where a request's output goes: one SSE event per batch of tokens of an answer, or one body at the end. */
export interface ResponseWriter {
  /** Resolves to nothing, or gives a promise to wait for when the client reads too slowly. */
  piece(choice: number, text: string, logprobs: readonly LogprobEntry[]): Promise<void> | undefined;
  /** The end of one answer, with the last of its text. */
  endChoice(choice: number, text: string, finish: string): void;
  /** After the end of every answer. */
  finish(tail: Tail): void;
  /** Tells an error: by status when nothing was sent yet, else as the stream's last event. Answers with the status told. */
  fail(error: unknown): number;
}

export function streamWriter(reply: FastifyReply, shape: ResponseShape, includeUsage: boolean): ResponseWriter {
  const begun = new Set<number>();
  const { raw } = reply;
  /** Whether this is the first event of the answer. */
  const begin = (choice: number): boolean => {
    if (begun.size === 0) writeHead(reply);
    const first = !begun.has(choice);
    begun.add(choice);
    return first;
  };
  return {
    piece(choice, text, logprobs) {
      const flowing = raw.write(shape.chunk(choice, text, logprobs, begin(choice)));
      return flowing || raw.destroyed ? undefined : drained(raw);
    },
    endChoice(choice, text, finish) {
      raw.write(shape.lastChunk(choice, text, finish, begin(choice)));
    },
    finish(tail) {
      if (includeUsage) raw.write(shape.usageChunk(tail));
      raw.end(DONE_EVENT);
    },
    fail(error) {
      if (begun.size === 0) return sendError(reply, error);
      const { body } = httpErrorFrom(error);
      raw.end(errorEvent(body));
      return 200;
    },
  };
}

function writeHead(reply: FastifyReply): void {
  const { raw } = reply;
  reply.hijack();
  for (const [name, value] of Object.entries(reply.getHeaders())) if (value !== undefined) raw.setHeader(name, value);
  raw.writeHead(200, {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
  });
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

export function wholeWriter(reply: FastifyReply, shape: ResponseShape, choiceCount: number): ResponseWriter {
  const choices = Array.from({ length: choiceCount }, () => ({
    pieces: [] as string[],
    logprobs: [] as LogprobEntry[],
    finish: "",
  }));
  return {
    piece(choice, text, logprobs) {
      choices[choice]?.pieces.push(text);
      choices[choice]?.logprobs.push(...logprobs);
      return undefined;
    },
    endChoice(choice, text, finish) {
      choices[choice]?.pieces.push(text);
      const own = choices[choice];
      if (own) own.finish = finish;
    },
    finish(tail) {
      const whole = choices.map(({ pieces, logprobs, finish }) => ({ text: pieces.join(""), logprobs, finish }));
      reply.send(shape.whole(whole, tail));
    },
    fail: (error) => sendError(reply, error),
  };
}

/** An error as the whole response. */
export function sendError(reply: FastifyReply, error: unknown): number {
  const { status, body, retryAfterMs } = httpErrorFrom(error);
  if (retryAfterMs !== undefined) {
    reply.header("retry-after", String(Math.max(1, Math.ceil(retryAfterMs / 1_000))));
    // Whole seconds are coarse; OpenAI's clients read this one first.
    reply.header("retry-after-ms", String(retryAfterMs));
  }
  reply.code(status).send(body);
  return status;
}
