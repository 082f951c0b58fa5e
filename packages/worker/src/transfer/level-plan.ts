import type { KvAccuracy, LevelSource, LevelSpan, TransferBook } from "@kvasir/core";
import type { KvLayout, KvSource } from "@kvasir/proto";
import type { LevelPlan } from "./kv-fetch.ts";
import { isWhole } from "./traffic.ts";

/**
 * Tokens of a fetch that may lose accuracy, after which its levels are chosen anew by what was measured meanwhile. Larger: fewer calls; smaller:
 * a link that changes is followed sooner.
 */
const SEGMENT_TOKENS = 1_024;

/** A source as the choice of levels sees it. */
export function levelSourceOf(own: KvLayout, source: KvSource | undefined): LevelSource {
  return {
    peer: source?.shardAddresses[0] ?? "",
    peerProfileIds: (source?.codecProfileIds ?? []).map((id) => Buffer.from(id).toString("hex")),
    isWhole: isWhole(own, source?.layout),
  };
}

export interface WantedKv {
  readonly book: TransferBook;
  readonly source: LevelSource;
  readonly tokenEnd: number;
  readonly bytesPerToken: number;
  /** Least exact KV that will do. */
  readonly accuracy: KvAccuracy;
  /** From now until the KV should be there; undefined: as soon as possible. */
  readonly wantedMs: number | undefined;
}

/** Levels that link, deadline and accuracy call for, chosen as the fetch goes on. */
export function plannedLevels({ book, source, tokenEnd, bytesPerToken, accuracy, wantedMs }: WantedKv): LevelPlan {
  const begunAt = performance.now();
  return {
    choose: (tokenBegin, isRawOnly) =>
      book.choose({
        ...{ ...source, isWhole: source.isWhole && !isRawOnly, tokenBegin, tokenEnd, bytesPerToken },
        budget: accuracy,
        deadlineMs: wantedMs === undefined ? undefined : Math.max(0, wantedMs - (performance.now() - begunAt)),
      }),
    // Whoever allows nothing to be lost gets all in one call.
    reviewAt: (tokenBegin) =>
      accuracy === "exact" ? tokenEnd : tokenBegin - (tokenBegin % SEGMENT_TOKENS) + SEGMENT_TOKENS,
  };
}

const RAW: Omit<LevelSpan, "tokenEnd"> = { level: 0, name: "raw", isApproximate: false };

/** One level for all, raw where it is not to be had. `profileId`: hex. */
export function oneLevel(
  level: Omit<LevelSpan, "tokenEnd">,
  profileId: string | undefined,
  { tokenBegin, tokenEnd }: { readonly tokenBegin: number; readonly tokenEnd: number },
): LevelPlan {
  return {
    choose: (_, isRawOnly) => {
      const chosen = isRawOnly ? RAW : level;
      return {
        profileId: isRawOnly ? undefined : profileId,
        spans: [{ ...chosen, tokenEnd }],
        approximateTokenCount: chosen.isApproximate ? tokenEnd - tokenBegin : 0,
        ...{ computedTokenCount: 0, predictedMs: 0, meetsDeadline: true },
      };
    },
    reviewAt: () => tokenEnd,
  };
}
