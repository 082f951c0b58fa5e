import { KvasirError } from "@kvasir/core";
import { errorFromService, isTyped } from "@kvasir/rpc";

/**
 * Why a stream of a peer failed. What the gateway cancels it knows of itself, so `cancelled` from a peer means that the peer is
 * going: another one may serve the request. So does a stream that broke without the peer's own word, whatever status that has.
 */
export function peerError(error: unknown): KvasirError {
  const failure = errorFromService(error);
  const isBroken = failure.reason === "internal" && !isTyped(error);
  if (failure.reason !== "cancelled" && !isBroken) return failure;
  return new KvasirError({
    reason: "unavailable",
    message: `the peer gave up: ${failure.message}; try again`,
    workerId: failure.workerId,
    cause: error,
  });
}
