/** Why a call between two parts of the cluster failed: a closed set. */
export type ErrorReason =
  | "overloaded"
  | "unavailable"
  | "lease_expired"
  | "stale_epoch"
  | "layout_mismatch"
  | "codec_mismatch"
  | "digest_mismatch"
  | "invalid_request"
  | "permission_denied"
  | "deadline_exceeded"
  | "cancelled"
  | "internal";

export interface ErrorFacts {
  readonly reason: ErrorReason;
  /** One sentence: what happened, with which values, and what to do. */
  readonly message: string;
  /** How long to wait before a retry makes sense; absent or 0 when waiting does not help. */
  readonly retryAfterMs?: number;
  /** The request field that is wrong, for `invalid_request`. */
  readonly field?: string;
  /** The worker that failed, where it is another one than the one that tells. */
  readonly workerId?: string;
  /** Within the reason, for programs; absent where the reason says all. */
  readonly code?: string;
  readonly cause?: unknown;
}

/** A failure that crosses a process border with its reason intact. */
export class KvasirError extends Error {
  override readonly name = "KvasirError";
  readonly reason: ErrorReason;
  readonly retryAfterMs: number;
  readonly field: string;
  readonly workerId: string;
  readonly code: string;

  constructor(facts: ErrorFacts) {
    super(facts.message, facts.cause === undefined ? undefined : { cause: facts.cause });
    this.reason = facts.reason;
    this.retryAfterMs = facts.retryAfterMs ?? 0;
    this.field = facts.field ?? "";
    this.workerId = facts.workerId ?? "";
    this.code = facts.code ?? "";
  }
}

/** Whether another placement or a later try may succeed. */
export function isRetryable(reason: ErrorReason): boolean {
  switch (reason) {
    case "overloaded":
    case "unavailable":
    case "lease_expired":
    case "stale_epoch":
    case "layout_mismatch":
    case "codec_mismatch":
    case "digest_mismatch":
      return true;
    case "invalid_request":
    case "permission_denied":
    case "deadline_exceeded":
    case "cancelled":
    case "internal":
      return false;
    default:
      return unreachable(reason);
  }
}

/** Ends a `switch` over a union; a new member makes the call a type error. */
export function unreachable(value: never): never {
  throw new Error(`unexpected value ${JSON.stringify(value)}`);
}
