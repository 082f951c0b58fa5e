import type { IncomingMessage } from "node:http";

/** A client that sends more than this after a refusal is cut off. */
const DRAIN_BYTES_MAX = 64 * 1024 * 1024;
const DRAIN_MAX_MS = 5_000;

/**
 * Reads the rest of a refused body and throws it away: most clients write their whole body before they look for an answer, and would see
 * a broken connection instead of the refusal. Bounded in bytes and time.
 */
export function drain(request: IncomingMessage): Promise<void> {
  if (request.complete || request.destroyed) return Promise.resolve();
  return new Promise((resolve) => {
    let bytes = 0;
    const timer = setTimeout(resolve, DRAIN_MAX_MS);
    const end = () => {
      clearTimeout(timer);
      resolve();
    };
    request.on("data", (chunk: Buffer) => {
      bytes += chunk.length;
      if (bytes > DRAIN_BYTES_MAX) end();
    });
    request.once("end", end);
    request.once("close", end);
    request.resume();
  });
}
