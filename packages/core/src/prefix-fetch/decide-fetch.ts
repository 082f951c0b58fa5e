/** Tokens [begin, end) of a prompt. */
export interface TokenSpan {
  readonly begin: number;
  readonly end: number;
}

export interface FetchProgress {
  /** Of the prompt; what is before is computed, cached or planned. */
  readonly plannedCount: number;
  /** Whole blocks up to here are lent; nothing more is asked for below `askedFrom`. */
  readonly askedFrom: number;
  /** Asked for and not verified yet. */
  readonly openTokenCount: number;
  /** Calls that are under way. */
  readonly openChunkCount: number;
  readonly verifiedTokenCount: number;
  /** Whether the holder has said what it lends: nothing can be asked for before. */
  readonly isLent: boolean;
  /** Since the holder was asked. */
  readonly elapsedMs: number;
  /** Since KV was verified last, or else since the holder was asked. */
  readonly quietMs: number;
  /** Of prompts, on this device alone. */
  readonly computeTokensPerMs: number;
}

export interface FetchLimits {
  readonly blockSize: number;
  /** Tokens of one call, whole blocks. Larger: fewer calls; smaller: compute and fetch meet closer, and less is lost with a call. */
  readonly chunkTokenCount: number;
  /** Calls at a time. Larger: no pause between two; smaller: less is asked for that computing would have reached first. */
  readonly openChunkMax: number;
  /** Silence from which nothing is concluded: a call's way there and back on a busy machine. Larger: a dead holder costs more; smaller: a slow answer is taken for a slow link. */
  readonly graceMs: number;
}

export interface FetchDecision {
  /** Ask for these now. */
  readonly next: TokenSpan | undefined;
  /** The device, when it has nothing else to do, may compute up to here; never into what was asked for. */
  readonly computeEnd: number;
  /** What is open takes longer than computing everything up to its end: it is not waited for. */
  readonly givesUp: boolean;
}

/**
 * Computes a prompt's missing KV from the front and fetches it from the back, until both meet.
 *
 * A token can be computed only when all before it is there, so computing begins at the front. Fetched KV is worth the more the later it is in the
 * text, where computing a token takes longest, and what has come stays worth it whatever happens to the rest: so fetching begins at the back. With
 * R tokens left, fetched at r and computed at c tokens a millisecond, both are done at once when R·c / (r + c) of them are computed; that many the
 * device may begin with. r is what was measured of this very fetch: verified tokens over the time since it began, without what a first answer takes, and never more than what is open
 * over the time since anything came. So a link that stalls is believed to be the slower the longer it is silent, computing takes over by itself,
 * and a fetch that is much quicker than computing leaves the device to others.
 *
 * When computing has come to what is open, waiting for it is worth as long as r ≥ c: after at most the time to compute it, it is computed, so that
 * a dead holder costs at most twice that (the rule of ski rental). What is verified by then is kept.
 *
 * After Cake (Jin et al., "Compute or Load KV Cache? Why not both?", 2024), which fetches and computes from both ends at full speed; here the share
 * is set beforehand, since a step that has begun cannot be stopped when the KV that it computes arrives.
 */
export function decideFetch(progress: FetchProgress, limits: FetchLimits): FetchDecision {
  const { plannedCount, askedFrom, openTokenCount, openChunkCount, isLent, computeTokensPerMs } = progress;
  const { blockSize, chunkTokenCount, openChunkMax } = limits;
  const front = Math.min(askedFrom, Math.ceil(plannedCount / blockSize) * blockSize);
  const unaskedCount = askedFrom - front;
  const awaitedCount = isLent ? openTokenCount : Math.min(chunkTokenCount, unaskedCount);
  const fetchTokensPerMs = measuredSpeed(progress, awaitedCount, limits.graceMs);
  const share = computeTokensPerMs / (computeTokensPerMs + fetchTokensPerMs);
  const computedCount = Math.floor(((openTokenCount + unaskedCount) * share) / blockSize) * blockSize;
  const shareEnd = Math.min(askedFrom, front + computedCount);
  const begin = Math.max(shareEnd, askedFrom - chunkTokenCount);
  const asks = isLent && openChunkCount < openChunkMax && begin < askedFrom;
  const waitMs = awaitedCount / fetchTokensPerMs;
  const computeMs = (openTokenCount + unaskedCount) / computeTokensPerMs;
  return {
    next: asks ? { begin, end: askedFrom } : undefined,
    computeEnd: shareEnd,
    givesUp: awaitedCount > 0 && waitMs > computeMs,
  };
}

/** Tokens a millisecond; infinite as long as nothing is known. */
function measuredSpeed(
  { verifiedTokenCount, elapsedMs, quietMs }: FetchProgress,
  awaitedCount: number,
  graceMs: number,
): number {
  const measuredMs = elapsedMs - graceMs;
  const silentMs = quietMs - graceMs;
  const sofar = verifiedTokenCount > 0 && measuredMs > 0 ? verifiedTokenCount / measuredMs : Number.POSITIVE_INFINITY;
  const atMost = silentMs > 0 && awaitedCount > 0 ? awaitedCount / silentMs : Number.POSITIVE_INFINITY;
  return Math.min(sofar, atMost);
}
