import type { BlockId, BlockPool } from "../block/block-pool.ts";
import { BLOCK_HASH_BYTES } from "../prefix/block-hash.ts";
import type { PlannedCopy, SchedulerEffect } from "./events.ts";
import type { Sequence } from "./sequence.ts";

/**
 * What sequences get from the pool's cache, and give to it.
 *
 * A block is kept once it is full and a step's answer, or a verified transfer, says that its KV is written; nothing writes it after that. Reused
 * are whole blocks from the beginning of the prompt, as far as they are there, but never the input's last token: its logits are what the first
 * token is sampled from. Output that a sequence brings from another worker is always computed: penalties and constraints read it on its way. The look-up is made at admission and again with the first chunk, so that those who wait behind a request get what it
 * computes. Cost: O(blocks) for each look-up; hashes are computed once, as tokens become known.
 */
export class PrefixReuse {
  readonly #pool: BlockPool;
  readonly #blockSize: number;

  constructor(pool: BlockPool, blockSize: number) {
    this.#pool = pool;
    this.#blockSize = blockSize;
  }

  /** Blocks with the KV of the sequence's input after `beginBlock` full blocks of it. */
  find(sequence: Sequence, beginBlock = 0): BlockId[] {
    const { chain, spec, inputTokenIds } = sequence;
    if (chain === undefined || spec.computesWholePrompt === true) return [];
    const reusable = Math.min(spec.promptTokenIds.length, inputTokenIds.length - 1);
    const usable = Math.min(chain.count, Math.floor(reusable / this.#blockSize));
    return this.#pool.find(chain.bytes(usable), beginBlock);
  }

  /** The sequence holds these found blocks as the first of its table. */
  begin(sequence: Sequence, found: readonly BlockId[]): void {
    sequence.blockIds = [...found];
    this.#skip(sequence, 0, found.length);
  }

  /**
   * Looks again before the first chunk is planned, unless KV of it is fetched. A sequence whose table ends where its KV does goes on with the blocks found; one whose blocks
   * are named to a peer already gets copies, which cost a hundredth of computing.
   */
  findMore(sequence: Sequence, copies: PlannedCopy[]): void {
    const { inputPlannedCount, awaited, arrived } = sequence;
    if (inputPlannedCount % this.#blockSize !== 0 || awaited !== undefined || arrived.length > 0) return;
    const beginBlock = inputPlannedCount / this.#blockSize;
    const found = this.find(sequence, beginBlock);
    const endBlock = beginBlock + this.#holdMore(sequence, found, beginBlock, copies);
    this.#skip(sequence, beginBlock, endBlock);
  }

  /** Answers with the number of blocks that are there, or will be when the step begins. */
  #holdMore(sequence: Sequence, found: readonly BlockId[], beginBlock: number, copies: PlannedCopy[]): number {
    const { blockIds, spec } = sequence;
    if (blockIds.length === beginBlock) {
      this.#pool.reuse(spec.sequenceId, found);
      blockIds.push(...found);
      return found.length;
    }
    const sources = this.#pool.borrow(found);
    sequence.copySources.push(...sources);
    for (const [index, sourceBlockId] of sources.entries()) {
      const targetBlockId = blockIds[beginBlock + index] as BlockId;
      copies.push({ sourceBlockId, targetBlockId, tokenCount: this.#blockSize });
    }
    return sources.length;
  }

  /** The KV of the sequence's first tokens is written, and not written again. */
  keep(sequence: Sequence, writtenTokenCount: number): void {
    const { chain, blockIds, isApproximate } = sequence;
    if (chain === undefined || isApproximate) return;
    const end = Math.min(Math.floor(writtenTokenCount / this.#blockSize), chain.count, blockIds.length);
    // Asked after every token: most end no block.
    if (end <= sequence.keptBlockCount) return;
    const hashes = chain.bytes(end);
    for (let index = sequence.keptBlockCount; index < end; index++) {
      this.#pool.keep(blockIds[index] as BlockId, hashes, index * BLOCK_HASH_BYTES);
    }
    sequence.keptBlockCount = end;
  }

  /** What stores are told of a sequence that ends. */
  used({ spec, chain, keptBlockCount }: Sequence): readonly SchedulerEffect[] {
    const { scope, sequenceId } = spec;
    if (scope === undefined || chain === undefined || keptBlockCount === 0) return [];
    return [{ kind: "TellUsedBlocks", sequenceId, scope, hashes: chain.bytes(keptBlockCount).slice() }];
  }

  #skip(sequence: Sequence, beginBlock: number, endBlock: number): void {
    sequence.inputPlannedCount = endBlock * this.#blockSize;
    sequence.cachedTokenCount += (endBlock - beginBlock) * this.#blockSize;
  }
}
