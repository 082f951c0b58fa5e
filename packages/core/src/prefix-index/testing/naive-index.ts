import type { HolderEvent } from "../holder-event.ts";
import { MEDIA, mediumRank } from "../media.ts";

interface NaiveHolder {
  epoch: number;
  sequence: number;
  /** Block hash as hex → copies on each medium. */
  blocks: Map<string, number[]>;
  snapshot: { sequence: number; nextPart: number; blocks: Map<string, number[]> } | undefined;
}

/** What `PrefixIndex` does, in maps. */
export class NaiveIndex {
  readonly holders = new Map<string, NaiveHolder>();

  apply(holderId: string, event: HolderEvent): string {
    let holder = this.holders.get(holderId);
    if (holder === undefined || event.epoch > holder.epoch) {
      holder = { epoch: event.epoch, sequence: 0, blocks: new Map(), snapshot: undefined };
      this.holders.set(holderId, holder);
    }
    if (event.epoch < holder.epoch) return "stale_epoch";
    if (event.kind === "SnapshotPart") return this.#snapshotPart(holder, event);
    if (event.sequence <= holder.sequence) return "repeated";
    if (event.sequence > holder.sequence + 1) return "needs_snapshot";
    holder.sequence = event.sequence;
    if (event.kind === "BlocksCleared") holder.blocks.clear();
    else if (event.kind === "BlocksStored") store(holder.blocks, event);
    else remove(holder.blocks, event);
    return "applied";
  }

  #snapshotPart(holder: NaiveHolder, event: HolderEvent & { kind: "SnapshotPart" }): string {
    if (event.sequence < holder.sequence) return "repeated";
    if (event.part === 0) holder.snapshot = { sequence: event.sequence, nextPart: 0, blocks: new Map() };
    const { snapshot } = holder;
    if (snapshot === undefined || snapshot.sequence !== event.sequence) return "needs_snapshot";
    if (event.part < snapshot.nextPart) return "repeated";
    if (event.part > snapshot.nextPart) return "needs_snapshot";
    snapshot.nextPart++;
    store(snapshot.blocks, event);
    if (event.isLast) {
      holder.blocks = snapshot.blocks;
      holder.sequence = event.sequence;
      holder.snapshot = undefined;
    }
    return "applied";
  }

  /** Per holder with the first block: leading blocks on a medium of each rank or faster. */
  match(hashes: readonly string[]): Map<string, number[]> {
    const found = new Map<string, number[]>();
    for (const [holderId, { blocks }] of this.holders) {
      const lengths = MEDIA.map((_, rank) => {
        const end = hashes.findIndex(
          (hash) => !(blocks.get(hash) ?? []).slice(0, rank + 1).some((copies) => copies > 0),
        );
        return end === -1 ? hashes.length : end;
      });
      if ((lengths.at(-1) ?? 0) > 0) found.set(holderId, lengths);
    }
    return found;
  }
}

type WithHashes = Extract<HolderEvent, { readonly hashes: Uint8Array }>;

function store(blocks: Map<string, number[]>, event: WithHashes): void {
  for (const hash of hexOf(event.hashes)) {
    const copies = blocks.get(hash) ?? [0, 0, 0, 0];
    const rank = mediumRank(event.medium);
    copies[rank] = (copies[rank] ?? 0) + 1;
    blocks.set(hash, copies);
  }
}

function remove(blocks: Map<string, number[]>, event: WithHashes): void {
  for (const hash of hexOf(event.hashes)) {
    const copies = blocks.get(hash);
    if (copies === undefined) continue;
    const rank = mediumRank(event.medium);
    copies[rank] = Math.max(0, (copies[rank] ?? 0) - 1);
    if (copies.every((count) => count === 0)) blocks.delete(hash);
  }
}

/** Each hash of 16 bytes as text. */
export function hexOf(hashes: Uint8Array): string[] {
  const found: string[] = [];
  for (let at = 0; at < hashes.length; at += 16) found.push(hashes.subarray(at, at + 16).join("."));
  return found;
}
