import { createHash } from "node:crypto";
import { mkdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** sun_path of Linux, without the ending zero. */
const SOCKET_PATH_BYTES_MAX = 107;

/** Path of one incarnation's socket: readable where it fits, hashed where the state directory is too deep for a Unix socket. */
export function socketPath(stateDir: string, workerId: string, epoch: bigint): string {
  const readable = join(stateDir, `${workerId.replaceAll(/[^\w.-]/g, "_")}-${epoch}.sock`);
  if (Buffer.byteLength(readable) <= SOCKET_PATH_BYTES_MAX) {
    mkdirSync(stateDir, { recursive: true });
    return readable;
  }
  const digest = createHash("sha256").update(readable).digest("hex").slice(0, 24);
  return join(tmpdir(), `kvasir-${digest}.sock`);
}
