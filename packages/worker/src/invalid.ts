import { KvasirError } from "@kvasir/core";

/** The caller is wrong; `field` names what to mend. */
export function invalid(field: string, message: string): KvasirError {
  return new KvasirError({ reason: "invalid_request", message, field });
}
