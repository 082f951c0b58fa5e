import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Metadata, type ServiceError, type StatusObject, status } from "@grpc/grpc-js";
import { type ErrorReason, KvasirError } from "@kvasir/core";
import { ErrorDetailSchema, ErrorReason as WireReason } from "@kvasir/proto";

/** Trailing metadata key of a serialised `kvasir.common.v1.ErrorDetail`. */
export const ERROR_METADATA_KEY = "kvasir-error-bin";

const TABLE: Readonly<Record<ErrorReason, { readonly code: status; readonly wire: WireReason }>> = {
  overloaded: { code: status.RESOURCE_EXHAUSTED, wire: WireReason.OVERLOADED },
  unavailable: { code: status.UNAVAILABLE, wire: WireReason.UNAVAILABLE },
  lease_expired: { code: status.FAILED_PRECONDITION, wire: WireReason.LEASE_EXPIRED },
  stale_epoch: { code: status.FAILED_PRECONDITION, wire: WireReason.STALE_EPOCH },
  layout_mismatch: { code: status.FAILED_PRECONDITION, wire: WireReason.LAYOUT_MISMATCH },
  codec_mismatch: { code: status.FAILED_PRECONDITION, wire: WireReason.CODEC_MISMATCH },
  digest_mismatch: { code: status.DATA_LOSS, wire: WireReason.DIGEST_MISMATCH },
  invalid_request: { code: status.INVALID_ARGUMENT, wire: WireReason.INVALID_REQUEST },
  permission_denied: { code: status.PERMISSION_DENIED, wire: WireReason.PERMISSION_DENIED },
  deadline_exceeded: { code: status.DEADLINE_EXCEEDED, wire: WireReason.DEADLINE_EXCEEDED },
  cancelled: { code: status.CANCELLED, wire: WireReason.CANCELLED },
  internal: { code: status.INTERNAL, wire: WireReason.INTERNAL },
};

const REASON_OF_WIRE = new Map<WireReason, ErrorReason>(
  (Object.keys(TABLE) as ErrorReason[]).map((reason) => [TABLE[reason].wire, reason]),
);

/** Anything thrown becomes the status that a server sends; what is not a `KvasirError` is `internal`. */
export function statusFromError(error: unknown): StatusObject {
  const known = asKvasirError(error);
  const metadata = new Metadata();
  const detail = create(ErrorDetailSchema, {
    reason: TABLE[known.reason].wire,
    message: known.message,
    retryAfterMs: known.retryAfterMs,
    field: known.field,
    workerId: known.workerId,
    code: known.code,
  });
  metadata.set(ERROR_METADATA_KEY, Buffer.from(toBinary(ErrorDetailSchema, detail)));
  return { code: TABLE[known.reason].code, details: known.message, metadata };
}

/** What a client caught, with the sender's reason; a bare gRPC status maps to the nearest reason. */
export function errorFromService(error: unknown): KvasirError {
  if (error instanceof KvasirError) return error;
  if (!isServiceError(error)) return asKvasirError(error);
  const raw = error.metadata?.get(ERROR_METADATA_KEY)[0];
  if (raw instanceof Uint8Array) {
    try {
      const detail = fromBinary(ErrorDetailSchema, raw);
      return new KvasirError({
        reason: REASON_OF_WIRE.get(detail.reason) ?? "internal",
        message: detail.message,
        retryAfterMs: detail.retryAfterMs,
        field: detail.field,
        workerId: detail.workerId,
        code: detail.code,
        cause: error,
      });
    } catch {
      // Undecodable detail: the status code below still says enough.
    }
  }
  return new KvasirError({ reason: reasonFromCode(error.code), message: error.details || error.message, cause: error });
}

/** Whether an error of a stream is the peer's own word, rather than the end of a connection. Errors that are not of a stream are. */
export function isTyped(error: unknown): boolean {
  return !isServiceError(error) || error.metadata?.get(ERROR_METADATA_KEY)[0] instanceof Uint8Array;
}

function reasonFromCode(code: status): ErrorReason {
  switch (code) {
    case status.CANCELLED:
      return "cancelled";
    case status.INVALID_ARGUMENT:
    case status.OUT_OF_RANGE:
    case status.NOT_FOUND:
      return "invalid_request";
    case status.PERMISSION_DENIED:
    case status.UNAUTHENTICATED:
      return "permission_denied";
    case status.DEADLINE_EXCEEDED:
      return "deadline_exceeded";
    case status.RESOURCE_EXHAUSTED:
      return "overloaded";
    case status.UNAVAILABLE:
    case status.ABORTED:
      return "unavailable";
    case status.DATA_LOSS:
      return "digest_mismatch";
    default:
      return "internal";
  }
}

function asKvasirError(error: unknown): KvasirError {
  if (error instanceof KvasirError) return error;
  const message = error instanceof Error ? error.message : String(error);
  return new KvasirError({ reason: "internal", message, cause: error });
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && typeof error.code === "number" && "details" in error;
}
