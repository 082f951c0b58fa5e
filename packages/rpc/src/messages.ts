import type { Readable } from "node:stream";

/**
 * The messages of a grpc-js stream. Unlike iterating the stream itself, leaving the loop early (by `break` or a throw) does not
 * destroy the stream, so that a server can still send its status and a client can still `cancel`.
 */
export function messages<T>(stream: Readable & AsyncIterable<T>): AsyncIterableIterator<T> {
  return stream.iterator({ destroyOnReturn: false }) as AsyncIterableIterator<T>;
}
