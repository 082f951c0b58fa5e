import { randomUUID } from "node:crypto";
import type { Socket } from "node:net";
import { answerAdmin, type Readiness } from "@kvasir/telemetry";
import fastify, { type FastifyInstance, type FastifyReply } from "fastify";
import { drain } from "./http/drain.ts";
import { httpErrorFrom, RequestError } from "./http/openai-error.ts";
import { sendError } from "./response-writer.ts";
import { type GenerationDeps, serveGeneration } from "./serve-generation.ts";

export interface ServerDeps extends GenerationDeps {
  readonly bodyLimitBytes: number;
  isReady(): Readiness;
  /** Asks the router anew, so that readiness is of this moment. */
  refresh(): Promise<unknown>;
}

const REQUEST_ID = /^[\x21-\x7e]{1,128}$/;
const ADMIN_PATHS = ["/live", "/ready", "/health", "/metrics"];
/** Longest time for a client to send its request. */
const RECEIVE_MAX_MS = 60_000;

/** The method that a known path takes. */
function methodOf(path: string): string | undefined {
  if (path === "/v1/chat/completions" || path === "/v1/completions") return "POST";
  return path === "/v1/models" || path.startsWith("/v1/models/") || ADMIN_PATHS.includes(path) ? "GET" : undefined;
}

/** The public HTTP server: OpenAI's endpoints, probes and metrics. Every error has OpenAI's shape. */
export function buildServer(deps: ServerDeps): FastifyInstance {
  const { model } = deps;
  const server = fastify({
    logger: false,
    bodyLimit: deps.bodyLimitBytes,
    forceCloseConnections: "idle",
    requestTimeout: RECEIVE_MAX_MS,
    frameworkErrors: (error, request, reply) => {
      const wrong = new RequestError(`the URL cannot be read: ${error.message}`, { code: "invalid_url", param: "url" });
      void refuse(reply.header("x-request-id", request.id), wrong);
    },
    clientErrorHandler: answerBrokenHttp,
    genReqId: (request) => {
      const given = request.headers["x-request-id"];
      return typeof given === "string" && REQUEST_ID.test(given) ? given : randomUUID();
    },
  });
  server.removeAllContentTypeParsers();
  // Bytes, so that broken UTF-8 is seen and not silently replaced.
  server.addContentTypeParser("application/json", { parseAs: "buffer" }, (_request, body, done) => done(null, body));
  server.addHook("onRequest", async (request, reply) => {
    reply.header("x-request-id", request.id);
  });

  server.post("/v1/chat/completions", (request, reply) => serveGeneration(deps, "chat", request, reply));
  server.post("/v1/completions", (request, reply) => serveGeneration(deps, "completion", request, reply));
  const card = { id: model.name, object: "model", created: model.createdAtUnixS, owned_by: "kvasir" };
  server.get("/v1/models", async () => ({
    object: "list",
    data: [{ ...card, max_model_len: model.facts.contextLength }],
  }));
  // Names with slashes come encoded from OpenAI's clients and as they are from others.
  server.get<{ Params: { "*": string } }>("/v1/models/*", async (request, reply) => {
    const id = request.params["*"];
    if (id === model.name) return { ...card, max_model_len: model.facts.contextLength };
    const message = `model ${JSON.stringify(id)} is not served here; use ${JSON.stringify(model.name)}`;
    return refuse(reply, new RequestError(message, { param: "model", code: "model_not_found", status: 404 }));
  });
  for (const path of ADMIN_PATHS) {
    server.get(path, async (_request, reply) => {
      if (path !== "/live" && path !== "/metrics") await deps.refresh();
      const answer = await answerAdmin(path, deps);
      return reply
        .code(answer?.status ?? 404)
        .type(answer?.contentType ?? "text/plain")
        .send(answer?.body ?? "");
    });
  }

  server.setNotFoundHandler((request, reply) => {
    const path = request.url.split("?", 1)[0] ?? "";
    const method = methodOf(path);
    if (method === undefined) {
      return refuse(
        reply,
        new RequestError(`there is nothing at ${request.method} ${path}`, { status: 404, code: "not_found" }),
      );
    }
    reply.header("allow", method);
    const message = `${request.method} is not allowed at ${path}; use ${method}`;
    return refuse(reply, new RequestError(message, { status: 405, code: "method_not_allowed" }));
  });
  server.setErrorHandler(async (error, request, reply) => {
    await drain(request.raw);
    return refuse(reply, known(error, request.headers["content-type"], deps));
  });
  return server;
}

/** What is no HTTP never becomes a request; it is told in the same shape all the same. */
function answerBrokenHttp(error: Error & { code?: string }, socket: Socket): void {
  if (error.code === "ECONNRESET" || !socket.writable) {
    socket.destroy();
    return;
  }
  const [status, reason, code] =
    error.code === "HPE_HEADER_OVERFLOW"
      ? [431, "Request Header Fields Too Large", "headers_too_large"]
      : error.code === "ERR_HTTP_REQUEST_TIMEOUT"
        ? [408, "Request Timeout", "request_too_slow"]
        : [400, "Bad Request", "invalid_http"];
  const { body } = httpErrorFrom(new RequestError(`the HTTP request cannot be read: ${error.message}`, { code }));
  const text = JSON.stringify(body);
  const head = `HTTP/1.1 ${status} ${reason}\r\ncontent-type: application/json; charset=utf-8\r\nconnection: close`;
  socket.end(`${head}\r\ncontent-length: ${Buffer.byteLength(text)}\r\n\r\n${text}`);
}

function refuse(reply: FastifyReply, error: unknown): FastifyReply {
  sendError(reply, error);
  return reply;
}

/** Fastify's own refusals in our words. */
function known(error: unknown, contentType: string | undefined, deps: ServerDeps): unknown {
  const code = typeof error === "object" && error !== null && "code" in error ? error.code : undefined;
  switch (code) {
    case "FST_ERR_CTP_BODY_TOO_LARGE":
      return new RequestError(`body is larger than ${deps.bodyLimitBytes} bytes; send less`, {
        param: "body",
        code: "body_too_large",
      });
    case "FST_ERR_CTP_INVALID_MEDIA_TYPE":
      return new RequestError(`content-type is ${contentType ?? "absent"}; use application/json`, {
        param: "content-type",
        code: "unsupported_media_type",
        status: 415,
      });
    case "FST_ERR_CTP_INVALID_CONTENT_LENGTH":
      return new RequestError("body is not as long as content-length says", { param: "body", code: "invalid_length" });
    default:
      deps.telemetry.logger.error({ err: error }, "a request failed");
      return error;
  }
}
