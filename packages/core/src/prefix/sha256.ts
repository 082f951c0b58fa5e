/** Words of a SHA-256 digest. */
export const DIGEST_WORDS = 8;
const BLOCK_WORDS = 16;
const BLOCK_BYTES = 64;

// The first 32 bits of the fractional parts of the cube roots of the first 64 primes, and of the square roots of the first 8 (FIPS 180-4, 4.2.2
// and 5.3.3).
const PRIMES = primes(64);
const ROUND_CONSTANTS = Int32Array.from(PRIMES, (prime) => fraction(Math.cbrt(prime)));
const INITIAL_STATE = Int32Array.from(PRIMES.slice(0, DIGEST_WORDS), (prime) => fraction(Math.sqrt(prime)));

/**
 * SHA-256 (FIPS 180-4) over 32-bit words. Pure, because the core is: the router's index, the workers' caches and the simulator compute the same
 * hashes without a host. A block's message is some hundred bytes, for which a call into a native library costs as much as the digest itself.
 * An instance is a buffer that is used again, for one digest at a time.
 */
export class Sha256 {
  readonly #schedule = new Int32Array(64);
  readonly #state = new Int32Array(DIGEST_WORDS);

  /**
   * The digest of `wordCount` words, each of four bytes, big endian. The answer is overwritten by the next call. `message` must have room for
   * the padding: `paddedWordCount(wordCount)` words.
   */
  digestWords(message: Int32Array, wordCount: number): Int32Array {
    const paddedCount = paddedWordCount(wordCount);
    message.fill(0, wordCount, paddedCount);
    message[wordCount] = 0x80000000;
    message[paddedCount - 2] = Math.floor((wordCount * 32) / 2 ** 32);
    message[paddedCount - 1] = wordCount * 32;
    this.#state.set(INITIAL_STATE);
    for (let offset = 0; offset < paddedCount; offset += BLOCK_WORDS) this.#compress(message, offset);
    return this.#state;
  }

  #compress(message: Int32Array, offset: number): void {
    const schedule = this.#schedule;
    const state = this.#state;
    for (let t = 0; t < BLOCK_WORDS; t++) schedule[t] = at(message, offset + t);
    for (let t = BLOCK_WORDS; t < 64; t++) {
      const w15 = at(schedule, t - 15);
      const w2 = at(schedule, t - 2);
      const s0 = ((w15 >>> 7) | (w15 << 25)) ^ ((w15 >>> 18) | (w15 << 14)) ^ (w15 >>> 3);
      const s1 = ((w2 >>> 17) | (w2 << 15)) ^ ((w2 >>> 19) | (w2 << 13)) ^ (w2 >>> 10);
      schedule[t] = (at(schedule, t - 16) + s0 + at(schedule, t - 7) + s1) | 0;
    }
    let a = at(state, 0);
    let b = at(state, 1);
    let c = at(state, 2);
    let d = at(state, 3);
    let e = at(state, 4);
    let f = at(state, 5);
    let g = at(state, 6);
    let h = at(state, 7);
    for (let t = 0; t < 64; t++) {
      const sum1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
      const t1 = (h + sum1 + ((e & f) ^ (~e & g)) + at(ROUND_CONSTANTS, t) + at(schedule, t)) | 0;
      const sum0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
      const t2 = (sum0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      h = g;
      g = f;
      f = e;
      e = (d + t1) | 0;
      d = c;
      c = b;
      b = a;
      a = (t1 + t2) | 0;
    }
    state[0] = (at(state, 0) + a) | 0;
    state[1] = (at(state, 1) + b) | 0;
    state[2] = (at(state, 2) + c) | 0;
    state[3] = (at(state, 3) + d) | 0;
    state[4] = (at(state, 4) + e) | 0;
    state[5] = (at(state, 5) + f) | 0;
    state[6] = (at(state, 6) + g) | 0;
    state[7] = (at(state, 7) + h) | 0;
  }
}

/** Words that a message takes with its padding: a bit, zeros, and its length in 64 bits, up to a whole block. */
export function paddedWordCount(wordCount: number): number {
  return Math.ceil((wordCount + 3) / BLOCK_WORDS) * BLOCK_WORDS;
}

/** SHA-256 of bytes whose number is a multiple of four: 32 bytes. */
export function sha256(bytes: Uint8Array): Uint8Array {
  const wordCount = bytes.length / 4;
  const message = new Int32Array(paddedWordCount(wordCount));
  for (let index = 0; index < wordCount; index++) message[index] = wordFromBytes(bytes, 4 * index);
  return bytesFromWords(new Sha256().digestWords(message, wordCount), DIGEST_WORDS);
}

/** HMAC-SHA-256 (RFC 2104) under a key of at most 64 bytes, of a message whose length is a multiple of four: 32 bytes. */
export function hmacSha256(key: Uint8Array, message: Uint8Array): Uint8Array {
  const masked = (mask: number, rest: Uint8Array): Uint8Array => {
    const joined = new Uint8Array(BLOCK_BYTES + rest.length).fill(mask, 0, BLOCK_BYTES);
    for (const [index, byte] of key.entries()) joined[index] = byte ^ mask;
    joined.set(rest, BLOCK_BYTES);
    return joined;
  };
  return sha256(masked(0x5c, sha256(masked(0x36, message))));
}

/** The word whose bytes, big endian, begin at `offset`. */
export function wordFromBytes(bytes: Uint8Array, offset: number): number {
  const [b0 = 0, b1 = 0, b2 = 0, b3 = 0] = [bytes[offset], bytes[offset + 1], bytes[offset + 2], bytes[offset + 3]];
  return (b0 << 24) | (b1 << 16) | (b2 << 8) | b3;
}

/** The first words as bytes, big endian. */
export function bytesFromWords(words: Int32Array, wordCount: number): Uint8Array {
  const bytes = new Uint8Array(4 * wordCount);
  const view = new DataView(bytes.buffer);
  for (let index = 0; index < wordCount; index++) view.setInt32(4 * index, words[index] ?? 0);
  return bytes;
}

/** Within bounds by construction; the fallback satisfies the type and costs nothing measurable. */
function at(words: Int32Array, index: number): number {
  return words[index] as number;
}

function primes(count: number): number[] {
  const found: number[] = [];
  for (let candidate = 2; found.length < count; candidate++) {
    if (found.every((prime) => candidate % prime !== 0)) found.push(candidate);
  }
  return found;
}

function fraction(value: number): number {
  return Math.floor((value - Math.floor(value)) * 2 ** 32) | 0;
}
