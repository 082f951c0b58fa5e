import { createHash, createHmac } from "node:crypto";
import fc from "fast-check";
import { expect, test } from "vitest";
import { BLOCK_HASH_BYTES, BlockHashChain, chunkKey, chunkRoot, hashBlocks, prefixRoot } from "./block-hash.ts";
import { hmacSha256, sha256 } from "./sha256.ts";

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");
const scope = { tenantScope: Uint8Array.from({ length: 16 }, (_, i) => i), fingerprint: new Uint8Array(16).fill(0xab) };
const tokens = (count: number, first = 1) => Array.from({ length: count }, (_, index) => first + index);

test("the digest is SHA-256, at every length around a block's end, and the code is HMAC", () => {
  for (const length of [0, 4, 48, 52, 56, 60, 64, 68, 116, 120, 144, 1_000]) {
    const bytes = Uint8Array.from({ length }, (_, index) => (index * 37) % 251);
    expect(hex(sha256(bytes)), `${length} bytes`).toBe(createHash("sha256").update(bytes).digest("hex"));
    const key = bytes.subarray(0, 64);
    expect(hex(hmacSha256(key, bytes))).toBe(createHmac("sha256", key).update(bytes).digest("hex"));
  }
});

test("the serialisation is fixed: roots, chains and keys of chunks, as golden values and beside another implementation", () => {
  const root = prefixRoot(scope, 32);
  const message = Buffer.concat([
    Buffer.from("kvasir.prefix.01"),
    Buffer.from([32, 0, 0, 0, 16, 0, 0, 0]),
    scope.fingerprint,
    Buffer.alloc(4),
  ]);
  expect(hex(root)).toBe(createHmac("sha256", scope.tenantScope).update(message).digest("hex").slice(0, 32));
  const prompt = [...tokens(64), 70_000];
  let parent: Uint8Array = root;
  const expected: Uint8Array[] = [];
  for (const block of [prompt.slice(0, 32), prompt.slice(32, 64)]) {
    const words = Buffer.from(Uint32Array.from(block).buffer);
    parent = createHash("sha256").update(parent).update(words).digest().subarray(0, BLOCK_HASH_BYTES);
    expected.push(parent);
  }
  expect(hex(hashBlocks(root, prompt, 32))).toBe(hex(Buffer.concat(expected)));

  expect(hex(root)).toBe("7abaf2ec0d05af9e76e1de28d850cbf1");
  expect(hex(hashBlocks(root, prompt, 32))).toBe("ca24d797451f8a9a81c9394edc7b85413c64f21a8952de7b24f9d04156823bc5");
  expect(hex(chunkKey(chunkRoot(scope), [5, 6, 70_000]))).toBe("8b3155884e914047fa15eafe60b3a058");
});

test("tenant, model, block size and adapter each begin other chains", () => {
  const other = new Uint8Array(16).fill(1);
  const roots = [
    prefixRoot(scope, 32),
    prefixRoot({ ...scope, tenantScope: other }, 32),
    prefixRoot({ ...scope, fingerprint: other }, 32),
    prefixRoot({ ...scope, adapter: Uint8Array.of(97) }, 32),
    prefixRoot(scope, 16),
    chunkRoot(scope),
  ];
  expect(new Set(roots.map(hex)).size).toBe(roots.length);
});

test("a hash stands for all tokens up to its block's end, and no token beyond", () => {
  const root = prefixRoot(scope, 4);
  const whole = hashBlocks(root, tokens(12), 4);
  expect(hex(hashBlocks(root, [...tokens(11), 99], 4).subarray(0, 32))).toBe(hex(whole.subarray(0, 32)));
  expect(hex(hashBlocks(root, [99, ...tokens(11, 2)], 4).subarray(32))).not.toBe(hex(whole.subarray(32)));
  // Without a parent, the place in a text does not matter.
  expect(hex(chunkKey(chunkRoot(scope), tokens(4)))).not.toBe(hex(whole.subarray(0, 16)));
});

test("a chain that grows as tokens arrive is the chain of all of them", () => {
  fc.assert(
    fc.property(
      fc.constantFrom(1, 4, 16, 32, 64),
      fc.array(fc.array(fc.nat(2 ** 32 - 1), { maxLength: 70 }), { maxLength: 8 }),
      (blockSize, pieces) => {
        const root = prefixRoot(scope, blockSize);
        const chain = new BlockHashChain(root, blockSize);
        for (const piece of pieces) {
          chain.fork().extend([1, 2, 3]);
          chain.extend(piece);
        }
        const all = pieces.flat();
        expect(chain.tokenCount).toBe(all.length);
        expect(chain.count).toBe(Math.floor(all.length / blockSize));
        expect(hex(chain.bytes())).toBe(hex(hashBlocks(root, all, blockSize)));
        const forked = chain.fork();
        forked.extend(all);
        expect(hex(forked.bytes())).toBe(hex(hashBlocks(root, [...all, ...all], blockSize)));
      },
    ),
  );
});

test("a chain goes on after hashes that are known as after the tokens they stand for", () => {
  const root = prefixRoot({ tenantScope: new Uint8Array(16), fingerprint: new Uint8Array(16) }, 4);
  const tokens = Array.from({ length: 23 }, (_, index) => index * 7);
  for (const known of [0, 4, 20]) {
    const chain = BlockHashChain.after(root, hashBlocks(root, tokens.slice(0, known), 4), 4);
    chain.extend(tokens, known);
    expect(chain.bytes()).toEqual(hashBlocks(root, tokens, 4));
    expect(chain.tokenCount).toBe(23);
  }
});
