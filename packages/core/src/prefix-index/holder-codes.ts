import { MEDIUM_COUNT } from "./media.ts";

/**
 * Two random words for each (holder, fastest medium). The fingerprint of a block's holders is the sum of their codes: kept up to date in one
 * addition, equal for equal sets, and for different ones with probability 2⁻⁶⁴. Such a chance costs a look-up that says a holder has a block
 * it has not: a slower choice, since every holder checks what it is asked for.
 */
export class HolderCodes {
  readonly a: Uint32Array;
  readonly b: Uint32Array;

  constructor(holderCapacity: number) {
    this.a = new Uint32Array(holderCapacity * MEDIUM_COUNT);
    this.b = new Uint32Array(holderCapacity * MEDIUM_COUNT);
    for (let index = 0; index < this.a.length; index++) {
      this.a[index] = mix(2 * index + 1);
      this.b[index] = mix(2 * index + 2);
    }
  }
}

/** The finaliser of MurmurHash3 over a Weyl sequence: a permutation of 32-bit words. */
function mix(index: number): number {
  let word = Math.imul(index, 0x9e3779b9);
  word = Math.imul(word ^ (word >>> 16), 0x85ebca6b);
  word = Math.imul(word ^ (word >>> 13), 0xc2b2ae35);
  return (word ^ (word >>> 16)) >>> 0;
}
