import { type ErrorReason, KvasirError, unreachable } from "@kvasir/core";

/** The error object that OpenAI's clients know. */
export interface OpenAiErrorBody {
  readonly error: {
    readonly message: string;
    readonly type: string;
    readonly param: string | null;
    readonly code: string | null;
  };
}

/** A request that is refused before it reaches the cluster. `param` names the field that is wrong. */
export class RequestError extends Error {
  override readonly name = "RequestError";
  readonly status: number;
  readonly param: string | null;
  readonly code: string | null;

  constructor(message: string, facts: { param?: string; code?: string; status?: number } = {}) {
    super(message);
    this.status = facts.status ?? 400;
    this.param = facts.param ?? null;
    this.code = facts.code ?? null;
  }
}

export interface HttpError {
  readonly status: number;
  readonly body: OpenAiErrorBody;
  /** When to come back. */
  readonly retryAfterMs?: number;
}

/** How anything thrown is told to an HTTP client. What is not known to us is told as `internal`, without its message. */
export function httpErrorFrom(error: unknown): HttpError {
  if (error instanceof RequestError) {
    return { status: error.status, body: body(error.message, "invalid_request_error", error.param, error.code) };
  }
  if (error instanceof KvasirError) {
    const { status, type } = httpFromReason(error.reason);
    const param = error.reason === "invalid_request" && error.field !== "" ? error.field : null;
    const answer = { status, body: body(error.message, type, param, error.code || error.reason) };
    const retryable = status === 429 || status === 503;
    return retryable ? { ...answer, retryAfterMs: Math.max(1, Math.round(error.retryAfterMs)) } : answer;
  }
  return { status: 500, body: body("the gateway failed; its log says why", "internal_error", null, "internal") };
}

function httpFromReason(reason: ErrorReason): { status: number; type: string } {
  switch (reason) {
    case "invalid_request":
      return { status: 400, type: "invalid_request_error" };
    case "overloaded":
      return { status: 429, type: "overloaded_error" };
    case "unavailable":
    case "lease_expired":
    case "stale_epoch":
    case "layout_mismatch":
    case "codec_mismatch":
    case "digest_mismatch":
      return { status: 503, type: "unavailable_error" };
    case "deadline_exceeded":
      return { status: 504, type: "timeout_error" };
    case "cancelled":
      return { status: 499, type: "cancelled_error" };
    case "permission_denied":
    case "internal":
      return { status: 500, type: "internal_error" };
    default:
      return unreachable(reason);
  }
}

function body(message: string, type: string, param: string | null, code: string | null): OpenAiErrorBody {
  return { error: { message, type, param, code } };
}
