import { BLOCK_HASH_BYTES, BlockHashChain } from "@kvasir/core";
import type { TraceRequest } from "./trace.ts";

/** One tenant's root; all requests of a trace may share KV. */
export const PREFIX_ROOT = new Uint8Array(BLOCK_HASH_BYTES).fill(1);

/** A prompt as schedulers and the router see it. */
export interface SimulatedPrompt {
  readonly tokenIds: readonly number[];
  readonly chain: BlockHashChain;
}

/**
 * Prompts from a trace's prefix ids: equal ids, equal hashes of the blocks within. The tokens themselves are all alike; a request without ids
 * gets hashes that nobody else has.
 */
export class Prompts {
  readonly #blockSize: number;
  readonly #prefixBlockSize: number;
  #tokens = new Uint8Array(0);

  constructor(blockSize: number, prefixBlockSize: number) {
    this.#blockSize = blockSize;
    this.#prefixBlockSize = prefixBlockSize;
  }

  of(key: number, { promptTokenCount, prefixIds }: TraceRequest): SimulatedPrompt {
    const count = Math.floor(promptTokenCount / this.#blockSize);
    const words = new Uint32Array((count * BLOCK_HASH_BYTES) / 4);
    const nameAt = (id: number) => prefixIds[id] ?? 0x8000_0000 + key;
    for (let block = 0; block < count; block++) {
      // Equal blocks have all ids that lie in them alike.
      const last = this.#idAt((block + 1) * this.#blockSize - 1);
      let id = this.#idAt(block * this.#blockSize);
      let name = nameAt(id);
      while (id < last) name = mix(name, nameAt(++id));
      for (let word = 0; word < 4; word++) words[block * 4 + word] = mix(name, (block << 2) + word);
    }
    const chain = BlockHashChain.after(PREFIX_ROOT, new Uint8Array(words.buffer), this.#blockSize);
    const tokenIds = this.#tokensOf(promptTokenCount);
    chain.extend(tokenIds, count * this.#blockSize);
    return { tokenIds, chain };
  }

  #idAt(position: number): number {
    return this.#prefixBlockSize === 0 ? -1 : Math.floor(position / this.#prefixBlockSize);
  }

  /** Views of one run of equal tokens: schedulers read lengths and slices of them, and a thousand long prompts wait at a time. */
  #tokensOf(count: number): readonly number[] {
    if (this.#tokens.length < count) this.#tokens = new Uint8Array(2 * count).fill(1);
    return this.#tokens.subarray(0, count) as unknown as readonly number[];
  }
}

function mix(a: number, b: number): number {
  let word = Math.imul(a ^ 0x632be59b, 0x9e3779b9) ^ Math.imul(b + 1, 0x85ebca77);
  word = Math.imul(word ^ (word >>> 16), 0x85ebca6b);
  word = Math.imul(word ^ (word >>> 13), 0xc2b2ae35);
  return (word ^ (word >>> 16)) >>> 0;
}
