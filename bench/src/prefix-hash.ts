import { createHash, hash } from "node:crypto";
import { BLOCK_HASH_BYTES, hashBlocks, prefixRoot } from "@kvasir/core";
import { median, option, publish, table } from "./lib/report.ts";

// Hashing the blocks of a long prompt with the core's own SHA-256, beside the same chain through node:crypto.
const TOKENS = Number(option("tokens", "100000"));
const ROUNDS = Number(option("rounds", "40"));
const BLOCK_SIZES = [16, 32, 64];

const tokenIds = Array.from({ length: TOKENS }, (_, index) => (index * 7_919) % 49_152);
const scope = { tenantScope: new Uint8Array(16).fill(7), fingerprint: new Uint8Array(16).fill(9) };

const rows: string[][] = [];
for (const blockSize of BLOCK_SIZES) {
  const root = prefixRoot(scope, blockSize);
  const ways = [
    () => hashBlocks(root, tokenIds, blockSize),
    () => chain(root, blockSize, (message) => createHash("sha256").update(message).digest()),
    () => chain(root, blockSize, (message) => hash("sha256", message, "buffer")),
  ];
  const [expected] = ways.map((way) => Buffer.from(way()).toString("hex"));
  for (const way of ways) if (Buffer.from(way()).toString("hex") !== expected) throw new Error("the hashes differ");
  const times: number[][] = ways.map(() => []);
  for (let round = 0; round < ROUNDS; round++) {
    for (const [index, way] of ways.entries()) {
      const begin = performance.now();
      way();
      times[index]?.push(performance.now() - begin);
    }
  }
  const [own = 0, object = 0, oneShot = 0] = times.map(median);
  rows.push([
    String(blockSize),
    own.toFixed(2),
    object.toFixed(2),
    oneShot.toFixed(2),
    (object / own).toFixed(2),
    (oneShot / own).toFixed(2),
  ]);
}
const header = ["block size", "core ms", "createHash ms", "crypto.hash ms", "createHash / core", "crypto.hash / core"];
publish(
  "prefix-hash",
  "Hashing a prompt's blocks",
  `${TOKENS.toLocaleString("en")} tokens, the chain of all full blocks, medians of ${ROUNDS} rounds taken in turn. The core's SHA-256 is TypeScript, because the core imports
nothing; node:crypto is the baseline for the same chain.

${table(header, rows)}`,
);

function chain(root: Uint8Array, blockSize: number, digest: (message: Uint8Array) => Uint8Array): Uint8Array {
  const count = Math.floor(tokenIds.length / blockSize);
  const out = new Uint8Array(count * BLOCK_HASH_BYTES);
  const message = Buffer.alloc(BLOCK_HASH_BYTES + 4 * blockSize);
  message.set(root);
  for (let block = 0; block < count; block++) {
    for (let index = 0; index < blockSize; index++) {
      message.writeUInt32LE(tokenIds[block * blockSize + index] ?? 0, BLOCK_HASH_BYTES + 4 * index);
    }
    const parent = digest(message).subarray(0, BLOCK_HASH_BYTES);
    message.set(parent);
    out.set(parent, block * BLOCK_HASH_BYTES);
  }
  return out;
}
