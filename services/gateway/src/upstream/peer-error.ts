import { KvasirError } from "@kvasir/core";
import { errorFromService } from "@kvasir/rpc";

/**
 * Why a stream of a peer failed. What the gateway cancels it knows of itself, so `cancelled` from a peer means that the peer is
 * going: another one may serve the request.
 */
export function peerError(error: unknown): KvasirError {
  const failure = errorFromService(error);
  if (failure.reason !== "cancelled") return failure;
  return new KvasirError({
    reason: "unavailable",
    message: `the peer gave up: ${failure.message}; try again`,
    cause: error,
  });
}
