import { assert } from "../assert.ts";
import { bytesFromWords, hmacSha256, paddedWordCount, Sha256, wordFromBytes } from "./sha256.ts";

/** Bytes of a block's hash: a SHA-256 cut to 128 bits, so that two of 2^40 blocks collide with a probability of 2^-49. */
export const BLOCK_HASH_BYTES = 16;
const HASH_WORDS = BLOCK_HASH_BYTES / 4;
const NO_HASHES = new Uint8Array(0);
/** Of all chains: a digest is made and read at once. */
const SHA_256 = new Sha256();

/** What a token's KV depends on beside the tokens before it, and who may know of it. */
export interface HashScope {
  /** 16 bytes, derived from the tenant by the gateway. Without it no hash can be computed, so one tenant's text never meets another's KV. */
  readonly tenantScope: Uint8Array;
  /** The layout's exact fingerprint: of everything that decides the bits of KV, such as model, number formats, rotary embedding. */
  readonly fingerprint: Uint8Array;
  /** Name of an adapter on the model, as UTF-8; empty: none. */
  readonly adapter?: Uint8Array;
}

/**
 * Where a tenant's chains begin: 16 bytes, the front of
 *
 *     HMAC-SHA-256(tenant scope, "kvasir.prefix.01" ‖ u32 block size ‖ u32 |fingerprint| ‖ fingerprint ‖ u32 |adapter| ‖ adapter ‖ zeros to 4)
 *
 * with integers little endian. The scope is the key, so that a hash tells nothing of the text to who does not know the scope.
 */
export function prefixRoot(scope: HashScope, blockSize: number): Uint8Array {
  return root("kvasir.prefix.01", scope, blockSize);
}

/** The same for keys of chunks, which have no block size: with the label "kvasir.chunk.001" and a block size of 0. */
export function chunkRoot(scope: HashScope): Uint8Array {
  return root("kvasir.chunk.001", scope, 0);
}

/**
 * Key of a text by its content alone, wherever in a prompt it stands: 16 bytes, the front of SHA-256(chunk root ‖ u32 of each token, little
 * endian). At least one token.
 */
export function chunkKey(chunkRoot: Uint8Array, tokenIds: readonly number[]): Uint8Array {
  assert(tokenIds.length > 0, "a chunk has no token");
  const chain = new BlockHashChain(chunkRoot, tokenIds.length);
  chain.extend(tokenIds);
  return chain.bytes();
}

/**
 * The hashes of a sequence's full blocks, as its tokens become known:
 *
 *     hash -1 = root;  hash i = SHA-256(hash i-1 ‖ u32 of each token of block i, little endian), cut to its first 16 bytes
 *
 * so that a block's hash stands for all tokens up to its end. The chain follows vLLM's (`kv_cache_utils.py`); the serialisation is our own: fixed, and the same for every process and language. `extend` costs three compressions a block of 32 tokens.
 */
export class BlockHashChain {
  readonly blockSize: number;
  readonly #root: Uint8Array;
  /** Parent and tokens of the block that is hashed next, and room for padding; made when a token comes. */
  #message: Int32Array | undefined;
  #hashes: Uint8Array;
  #count = 0;
  /** Tokens of the last, unfinished block. */
  #pendingCount = 0;

  constructor(root: Uint8Array, blockSize: number) {
    assert(root.length === BLOCK_HASH_BYTES, `a root has ${root.length} bytes, must have ${BLOCK_HASH_BYTES}`);
    assert(blockSize >= 1, `block size is ${blockSize}, must be positive`);
    this.blockSize = blockSize;
    this.#root = root;
    this.#hashes = NO_HASHES;
  }

  /** The chain whose full blocks have these hashes, to go on after them. */
  static after(root: Uint8Array, hashes: Uint8Array, blockSize: number): BlockHashChain {
    const { length } = hashes;
    assert(length % BLOCK_HASH_BYTES === 0, `${length} bytes are not whole hashes of ${BLOCK_HASH_BYTES}`);
    const chain = new BlockHashChain(root, blockSize);
    chain.#hashes = hashes.slice();
    chain.#count = length / BLOCK_HASH_BYTES;
    return chain;
  }

  /** The same chain, to be extended by itself. */
  fork(): BlockHashChain {
    const forked = new BlockHashChain(this.#root, this.blockSize);
    if (this.#pendingCount > 0) forked.#message = this.#message?.slice();
    forked.#hashes = this.bytes().slice();
    forked.#count = this.#count;
    forked.#pendingCount = this.#pendingCount;
    return forked;
  }

  /** Full blocks hashed. */
  get count(): number {
    return this.#count;
  }

  /** Tokens taken. */
  get tokenCount(): number {
    return this.#count * this.blockSize + this.#pendingCount;
  }

  /** Takes the next tokens, `tokenIds[begin]` first. */
  extend(tokenIds: readonly number[], begin = 0): void {
    this.#reserve(Math.floor((this.tokenCount + tokenIds.length - begin) / this.blockSize));
    const message = this.#message ?? this.#newMessage();
    for (let index = begin; index < tokenIds.length; index++) {
      message[HASH_WORDS + this.#pendingCount] = swapped(tokenIds[index] ?? 0);
      this.#pendingCount++;
      if (this.#pendingCount === this.blockSize) this.#finishBlock(message);
    }
  }

  /** The hashes of the first `count` blocks, 16 bytes each, one after the other. A view, valid until the next `extend`. */
  bytes(count = this.#count): Uint8Array {
    assert(count <= this.#count, `${count} hashes are asked of a chain of ${this.#count}`);
    return this.#hashes.subarray(0, count * BLOCK_HASH_BYTES);
  }

  /** Begins with the hash of the last full block. */
  #newMessage(): Int32Array {
    const message = new Int32Array(paddedWordCount(HASH_WORDS + this.blockSize));
    const parent = this.#count === 0 ? this.#root : this.#hashes;
    const offset = this.#count === 0 ? 0 : (this.#count - 1) * BLOCK_HASH_BYTES;
    for (let word = 0; word < HASH_WORDS; word++) message[word] = wordFromBytes(parent, offset + 4 * word);
    this.#message = message;
    return message;
  }

  #finishBlock(message: Int32Array): void {
    const digest = SHA_256.digestWords(message, HASH_WORDS + this.blockSize);
    const offset = this.#count * BLOCK_HASH_BYTES;
    for (let word = 0; word < HASH_WORDS; word++) {
      const value = digest[word] as number;
      message[word] = value;
      this.#hashes[offset + 4 * word] = value >>> 24;
      this.#hashes[offset + 4 * word + 1] = value >>> 16;
      this.#hashes[offset + 4 * word + 2] = value >>> 8;
      this.#hashes[offset + 4 * word + 3] = value;
    }
    this.#count++;
    this.#pendingCount = 0;
  }

  #reserve(count: number): void {
    if (count * BLOCK_HASH_BYTES <= this.#hashes.length) return;
    const grown = new Uint8Array(Math.max(count, 2 * this.#count) * BLOCK_HASH_BYTES);
    grown.set(this.bytes());
    this.#hashes = grown;
  }
}

/** Hashes of the full blocks of a prompt, 16 bytes each: what travels on wires. */
export function hashBlocks(root: Uint8Array, tokenIds: readonly number[], blockSize: number): Uint8Array {
  const chain = new BlockHashChain(root, blockSize);
  chain.extend(tokenIds);
  return chain.bytes();
}

function root(label: string, { tenantScope, fingerprint, adapter = new Uint8Array() }: HashScope, blockSize: number) {
  const parts = [latin1(label), littleEndian(blockSize)];
  for (const field of [fingerprint, adapter]) parts.push(littleEndian(field.length), field);
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  const message = new Uint8Array(Math.ceil(length / 4) * 4);
  let offset = 0;
  for (const part of parts) {
    message.set(part, offset);
    offset += part.length;
  }
  return hmacSha256(tenantScope, message).slice(0, BLOCK_HASH_BYTES);
}

const latin1 = (text: string): Uint8Array => Uint8Array.from(text, (letter) => letter.charCodeAt(0));

const littleEndian = (value: number): Uint8Array => bytesFromWords(Int32Array.of(swapped(value)), 1);

/** A word with its bytes turned around. */
function swapped(value: number): number {
  return (value << 24) | ((value & 0xff00) << 8) | ((value >>> 8) & 0xff00) | (value >>> 24);
}
