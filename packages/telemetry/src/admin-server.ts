import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { isTraceId, type SpanRecord } from "./span-record.ts";
import type { Telemetry } from "./telemetry.ts";

export interface Readiness {
  readonly ready: boolean;
  /** Why not, for people. */
  readonly reason?: string;
}

export interface AdminServerOptions {
  /** host:port; port 0 takes any. */
  readonly listen: string;
  readonly telemetry: Telemetry;
  isReady(): Readiness;
  /** Of a process that can finish its work and end: `GET /drain` tells, `POST /drain[?deadline_ms=N]` starts. */
  readonly drain?: Drain;
  /** Of a process that caches: `POST /cache/clear` empties it, and answers with how many blocks were in it. */
  clearCache?(): number;
  /** What this process has beyond that; undefined: nothing at that path. */
  more?(request: AdminRequest): Promise<AdminAnswer | undefined>;
  /** Spans of processes that have no admin server of their own: a worker's sidecar. */
  extraSpans?(traceId: string): Promise<readonly SpanRecord[]>;
}

export interface Drain {
  state(): { readonly state: "serving" | "draining"; readonly running: number };
  /** At most once each; without a deadline the process's own holds. */
  start(deadlineMs?: number): void;
}

export interface AdminRequest {
  readonly method: string;
  readonly path: string;
  readonly headers: IncomingMessage["headers"];
  /** Reads it; rejects when it is larger than `byteMax`. */
  body(byteMax: number): Promise<Uint8Array>;
}

export interface AdminServer {
  /** host:port bound. */
  readonly address: string;
  close(): Promise<void>;
}

export interface AdminAnswer {
  readonly status: number;
  readonly contentType: string;
  readonly body: string;
}

const REQUESTS_PATH = "/debug/requests/";

/** Answers GET on `/live`, `/drain` where there is one, `/ready`, `/health`, `/metrics`, `/debug/traces/<traceId>` and `/debug/requests/<requestId>`; undefined for any other path. */
export async function answerAdmin(
  path: string,
  options: Omit<AdminServerOptions, "listen">,
): Promise<AdminAnswer | undefined> {
  if (path === "/live") return jsonAnswer(200, { live: true });
  if (path === "/ready" || path === "/health") {
    const readiness = options.isReady();
    return jsonAnswer(readiness.ready ? 200 : 503, readiness);
  }
  if (path === "/drain" && options.drain !== undefined) return jsonAnswer(200, options.drain.state());
  if (path === "/metrics") {
    const { registry } = options.telemetry;
    return { status: 200, contentType: registry.contentType, body: await registry.metrics() };
  }
  if (path.startsWith(REQUESTS_PATH)) {
    const requestId = decoded(path.slice(REQUESTS_PATH.length));
    if (requestId === undefined)
      return jsonAnswer(400, { error: `${JSON.stringify(path)} is no request id, percent-encoded` });
    return jsonAnswer(200, options.telemetry.tracesOfRequest(requestId));
  }
  if (!path.startsWith("/debug/traces/")) return undefined;
  const traceId = path.slice("/debug/traces/".length).toLowerCase();
  if (!isTraceId(traceId))
    return jsonAnswer(400, { error: `trace id ${JSON.stringify(traceId)} is not 32 hex digits` });
  const own = options.telemetry.spans(traceId);
  try {
    return jsonAnswer(200, [...own, ...((await options.extraSpans?.(traceId)) ?? [])]);
  } catch (error) {
    options.telemetry.logger.warn({ err: error, traceId }, "spans of the sidecar are missing from this answer");
    return jsonAnswer(200, own);
  }
}

function decoded(text: string): string | undefined {
  try {
    return decodeURIComponent(text);
  } catch {
    return undefined;
  }
}

/** The HTTP side of a service: for probes, Prometheus and people. Never for clients' traffic. */
export async function startAdminServer(options: AdminServerOptions): Promise<AdminServer> {
  const server = createServer((request, response) => {
    respond(request, response, options).catch((error: unknown) => {
      options.telemetry.logger.error({ err: error, url: request.url }, "an admin request failed");
      if (!response.headersSent) send(response, jsonAnswer(500, { error: "internal" }));
    });
  });
  const { host, port } = splitAddress(options.listen);
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error) => reject(new Error(`cannot listen on ${options.listen}: ${error.message}`)));
    server.listen(port, host, resolve);
  });
  const bound = server.address() as AddressInfo;
  return {
    address: `${options.listen.slice(0, options.listen.lastIndexOf(":"))}:${bound.port}`,
    close() {
      return new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      });
    },
  };
}

async function respond(request: IncomingMessage, response: ServerResponse, options: AdminServerOptions): Promise<void> {
  const { method = "GET", headers } = request;
  const [path = "/"] = (request.url ?? "/").split("?", 1);
  const more = await options.more?.({ method, path, headers, body: (byteMax) => bodyOf(request, byteMax) });
  if (more !== undefined) {
    send(response, more);
    return;
  }
  if (request.method === "POST") {
    const url = new URL(request.url ?? "/", "http://admin");
    if (url.pathname === "/drain" && options.drain !== undefined) {
      send(response, startDrain(options.drain, url.searchParams.get("deadline_ms")));
      return;
    }
    if (url.pathname === "/cache/clear" && options.clearCache !== undefined) {
      send(response, jsonAnswer(200, { cleared_blocks: options.clearCache() }));
      return;
    }
  }
  if (request.method !== "GET" && request.method !== "HEAD") {
    send(response, jsonAnswer(405, { error: `${request.method} is not allowed here` }));
    return;
  }
  send(response, (await answerAdmin(path, options)) ?? jsonAnswer(404, { error: `nothing at ${path}` }));
}

function startDrain(drain: Drain, deadline: string | null): AdminAnswer {
  if (deadline !== null && !/^\d{1,9}$/.test(deadline)) {
    return jsonAnswer(400, { error: `deadline_ms is ${JSON.stringify(deadline)}; it is a number of milliseconds` });
  }
  drain.start(deadline === null ? undefined : Number(deadline));
  return jsonAnswer(202, { ...drain.state(), state: "draining" });
}

function send(response: ServerResponse, answer: AdminAnswer): void {
  const body = Buffer.from(answer.body);
  response.writeHead(answer.status, { "content-type": answer.contentType, "content-length": body.length });
  response.end(body);
}

async function bodyOf(request: IncomingMessage, byteMax: number): Promise<Uint8Array> {
  const parts: Buffer[] = [];
  let byteCount = 0;
  for await (const part of request) {
    byteCount += part.length;
    if (byteCount > byteMax) throw new Error(`the body has more than ${byteMax} bytes; send less`);
    parts.push(part);
  }
  return Buffer.concat(parts);
}

/** An answer as JSON. */
export function jsonAnswer(status: number, value: unknown): AdminAnswer {
  return { status, contentType: "application/json; charset=utf-8", body: JSON.stringify(value) };
}

/** `[::1]:80` → `::1` and 80. */
function splitAddress(address: string): { host: string; port: number } {
  const colon = address.lastIndexOf(":");
  return { host: address.slice(0, colon).replace(/^\[|\]$/g, ""), port: Number(address.slice(colon + 1)) };
}
