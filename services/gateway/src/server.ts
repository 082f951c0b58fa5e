import { randomUUID } from "node:crypto";
import { answerAdmin, type Readiness } from "@kvasir/telemetry";
import fastify, { type FastifyInstance, type FastifyReply } from "fastify";
import { RequestError } from "./http/openai-error.ts";
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
const METHODS_BY_PATH: Readonly<Record<string, string>> = {
  "/v1/chat/completions": "POST",
  "/v1/completions": "POST",
  "/v1/models": "GET",
};

/** The public HTTP server: OpenAI's endpoints, probes and metrics. Every error has OpenAI's shape. */
export function buildServer(deps: ServerDeps): FastifyInstance {
  const { model } = deps;
  const server = fastify({
    logger: false,
    bodyLimit: deps.bodyLimitBytes,
    forceCloseConnections: "idle",
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
  server.get<{ Params: { id: string } }>("/v1/models/:id", async (request, reply) => {
    if (request.params.id === model.name) return { ...card, max_model_len: model.facts.contextLength };
    const message = `model ${JSON.stringify(request.params.id)} is not served here; use ${JSON.stringify(model.name)}`;
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
    const method = METHODS_BY_PATH[path];
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
  server.setErrorHandler((error, request, reply) => refuse(reply, known(error, request.headers["content-type"], deps)));
  return server;
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
