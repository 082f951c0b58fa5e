import { createHash } from "node:crypto";
import { hashBlocks, prefixRoot } from "@kvasir/core";
import { PIN_MAX, type PinBook, type PinRecord } from "@kvasir/state";
import { type AdminAnswer, type AdminRequest, jsonAnswer } from "@kvasir/telemetry";
import { httpErrorFrom, RequestError } from "./http/openai-error.ts";
import { parseBody } from "./http/parse-body.ts";
import type { ServedModel } from "./prepare.ts";
import { prepareBody } from "./prepare-body.ts";
import { tenantScope } from "./tenant-scope.ts";
import type { KvLayoutKey } from "./upstream/router-link.ts";

const PATH = "/cache/pins";
const TTL_MAX_SECONDS = 366 * 86_400;

export interface PinDeps {
  readonly model: ServedModel;
  readonly tenantSecret: string;
  readonly bodyLimitBytes: number;
  readonly pins: Pick<PinBook, "put" | "remove" | "list">;
  readonly layouts: () => readonly KvLayoutKey[];
}

/**
 * What an operator asks of stores: `POST /cache/pins` with the body and the authorization of a request whose prompt is to stay, and
 * `ttl_seconds`; `GET /cache/pins`; `DELETE /cache/pins/ID`. Undefined for any other path.
 */
export async function answerPins(deps: PinDeps, request: AdminRequest): Promise<AdminAnswer | undefined> {
  const { method, path } = request;
  if (path !== PATH && !path.startsWith(`${PATH}/`)) return undefined;
  try {
    const pinId = path.slice(PATH.length + 1);
    if (path === PATH && method === "POST") return jsonAnswer(201, shown(await pin(deps, request)));
    if (path === PATH && method === "GET") return jsonAnswer(200, { pins: (await deps.pins.list()).map(shown) });
    if (path !== PATH && method === "DELETE") {
      if (await deps.pins.remove(pinId)) return jsonAnswer(200, { id: pinId, deleted: true });
      throw new RequestError(`there is no pin ${JSON.stringify(pinId)}`, { status: 404, code: "not_found" });
    }
    const right = path === PATH ? "GET or POST" : "DELETE";
    throw new RequestError(`${method} is not allowed at ${path}; use ${right}`, {
      status: 405,
      code: "method_not_allowed",
    });
  } catch (error) {
    const { status, body } = httpErrorFrom(error);
    return jsonAnswer(status, body);
  }
}

async function pin(
  { model, tenantSecret, bodyLimitBytes, pins, layouts }: PinDeps,
  request: AdminRequest,
): Promise<PinRecord> {
  const { ttl_seconds: ttlSeconds, ...rest } = parseBody(await request.body(bodyLimitBytes)) as Record<string, unknown>;
  const endpoint = "prompt" in rest ? "completion" : "chat";
  const { promptTokenIds, cacheSalt } = await prepareBody(model, endpoint, { model: model.name, ...rest });
  const scope = tenantScope(tenantSecret, request.headers.authorization, cacheSalt);
  const known = layouts();
  if (known.length === 0)
    throw new RequestError("no worker of this model is known yet, so blocks have no names; try again", {
      status: 503,
      code: "unavailable",
    });
  const hashed = known.map(({ exactFingerprint, blockSize }) => {
    const hashes = hashBlocks(
      prefixRoot({ tenantScope: scope, fingerprint: exactFingerprint }, blockSize),
      promptTokenIds,
      blockSize,
    );
    return {
      exactFingerprint: Buffer.from(exactFingerprint).toString("hex"),
      blockSize,
      hashesBase64: Buffer.from(hashes).toString("base64"),
    };
  });
  if (hashed.every(({ hashesBase64 }) => hashesBase64 === "")) {
    const message = `the prompt has ${promptTokenIds.length} tokens, and no whole block of ${known[0]?.blockSize}; there is nothing to keep`;
    throw new RequestError(message, { param: "prompt", code: "invalid_value" });
  }
  const now = Date.now();
  const tokens = createHash("sha256").update(scope).update(Int32Array.from(promptTokenIds));
  const record: PinRecord = {
    // The same prompt of the same tenant is the same pin: asking again renews its time.
    pinId: tokens.digest("hex").slice(0, 16),
    model: model.name,
    tenantScope: Buffer.from(scope).toString("hex"),
    promptTokenCount: promptTokenIds.length,
    layouts: hashed,
    createdAtUnixMs: now,
    expiresAtUnixMs: endOf(ttlSeconds, now),
  };
  if ((await pins.put(record)) === "put") return record;
  const message = `there are ${PIN_MAX} pins already; delete one first`;
  throw new RequestError(message, { status: 409, code: "too_many_pins" });
}

/** 0: never. */
function endOf(ttlSeconds: unknown, nowUnixMs: number): number {
  if (ttlSeconds === undefined || ttlSeconds === null) return 0;
  const isRight = Number.isInteger(ttlSeconds) && Number(ttlSeconds) >= 1 && Number(ttlSeconds) <= TTL_MAX_SECONDS;
  if (isRight) return nowUnixMs + Number(ttlSeconds) * 1_000;
  const message = `ttl_seconds is ${JSON.stringify(ttlSeconds)}; use 1 to ${TTL_MAX_SECONDS}, or leave it out for no end`;
  throw new RequestError(message, { param: "ttl_seconds", code: "invalid_value" });
}

function shown({
  pinId,
  model,
  tenantScope: scope,
  promptTokenCount,
  layouts,
  createdAtUnixMs,
  expiresAtUnixMs,
}: PinRecord) {
  return {
    id: pinId,
    model,
    tenant_scope: scope.slice(0, 8),
    prompt_tokens: promptTokenCount,
    blocks: Math.max(...layouts.map(({ blockSize }) => Math.floor(promptTokenCount / blockSize))),
    created_at: new Date(createdAtUnixMs).toISOString(),
    expires_at: expiresAtUnixMs === 0 ? null : new Date(expiresAtUnixMs).toISOString(),
  };
}
