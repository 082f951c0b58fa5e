import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { socketPath } from "./socket-path.ts";

test("the socket's path says whose it is, and stays within what a Unix socket can have", () => {
  const directory = mkdtempSync(join(tmpdir(), "socket-path-"));
  expect(socketPath(directory, "decode/0", 7n)).toBe(join(directory, "decode_0-7.sock"));
  const deep = join(directory, "x".repeat(120));
  const hashed = socketPath(deep, "decode-0", 7n);
  expect(Buffer.byteLength(hashed)).toBeLessThanOrEqual(107);
  expect(hashed).not.toBe(socketPath(deep, "decode-0", 8n));
});
