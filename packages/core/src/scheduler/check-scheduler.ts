import { assert } from "../assert.ts";
import type { BlockId, BlockPool } from "../block/block-pool.ts";
import type { Sequence } from "./sequence.ts";

/** Checks every block and every counter against the sequences that stand behind them. */
export function checkSequences(
  sequences: Iterable<Sequence>,
  pool: BlockPool,
  counted: { readonly active: number; readonly pinned: number; readonly activeMax: number },
): void {
  pool.checkInvariants();
  const holders = new Map<BlockId, number>();
  let active = 0;
  let pinned = 0;
  for (const sequence of sequences) {
    const { sequenceId, maxTokens } = sequence.spec;
    for (const blockId of [...sequence.blockIds, ...sequence.copySources]) {
      holders.set(blockId, (holders.get(blockId) ?? 0) + 1);
    }
    assert(sequence.samplePlannedCount <= maxTokens, `sequence ${sequenceId} is planned beyond max_tokens`);
    assert(
      sequence.inputPlannedCount <= sequence.inputTokenIds.length,
      `sequence ${sequenceId} is planned beyond its input`,
    );
    assert(
      sequence.awaited === undefined || sequence.awaited.begin >= sequence.inputPlannedCount,
      `sequence ${sequenceId} is planned into what a fetch may write`,
    );
    if (sequence.phase === "pinned") pinned += sequence.blockIds.length;
    else if (sequence.phase !== "waiting" && sequence.phase !== "ended") active++;
  }
  assert(holders.size === pool.takenCount, `${pool.takenCount} blocks are taken, ${holders.size} held`);
  for (const [blockId, count] of holders) {
    const known = pool.holderCount(blockId);
    assert(known === count, `block ${blockId} is held by ${count} sequences, counted ${known}`);
  }
  assert(active === counted.active, `${active} sequences are active, counted ${counted.active}`);
  assert(active <= counted.activeMax, `${active} sequences are active`);
  assert(pinned === counted.pinned, `${pinned} blocks are pinned, counted ${counted.pinned}`);
}
