import type { Candidate } from "./choose-placement.ts";
import type { KvRate } from "./link-belief.ts";
import type { RequestShape } from "./worker-facts.ts";

/** Alternatives named in a reason; a person reads no more. */
const ALTERNATIVE_MAX = 3;

/** `prefill-0 → decode-1`, or `mixed-0`. */
export function candidateName({ prefill, decode }: Candidate): string {
  const decodeId = decode.facts.workerId;
  return prefill === undefined ? decodeId : `${prefill.facts.workerId} → ${decodeId}`;
}

/** One line for people: what was chosen, the sum behind its TTFT, and what else there was. */
export function describePlacement(
  candidates: readonly [Candidate, ...Candidate[]],
  request: RequestShape,
  waitedMs: number,
): string {
  const [best, ...others] = candidates;
  const { queueMs, computeMs, tailMs } = best.ttft;
  const { uncachedTokenCount } = best;
  const isCached = uncachedTokenCount < request.promptTokenCount;
  const tokens = isCached ? `${uncachedTokenCount} of ${request.promptTokenCount}` : `${uncachedTokenCount}`;
  const speed = best.prefillTokensPerSecond > 0 ? ` at ${Math.round(best.prefillTokensPerSecond)}/s` : "";
  const parts = [
    ...(waitedMs >= 1 ? [`waited here ${ms(waitedMs)}`] : []),
    `queue ${ms(queueMs)}`,
    `compute ${ms(computeMs)} (${tokens} tokens${speed})`,
    `${best.mode === "split" ? "hand-over" : "running step"} ${ms(tailMs)}${measured(best.handOver?.rate)}`,
  ];
  const alternatives = others.slice(0, ALTERNATIVE_MAX).map((other) => `${candidateName(other)} ${ms(other.ttftMs)}`);
  const rest = others.length > ALTERNATIVE_MAX ? `, ${others.length - ALTERNATIVE_MAX} more` : "";
  const choice = alternatives.length === 0 ? "the only candidate" : `before ${alternatives.join(", ")}${rest}`;
  return (
    `${best.mode} on ${candidateName(best)}${local(candidates)}: TTFT ${ms(waitedMs + best.ttftMs)} = ${parts.join(" + ")}; ` +
    `${reuse(best)}TBT ${ms(best.tbtMs)} beside ${best.sequenceCount} sequences, ` +
    `${best.freeBlockCount} of ${best.decode.facts.blockCount} blocks free; ${choice}${best.isTrial === true ? "; late by this prediction, and tried, as nothing has run for a while" : ""}`
  );
}

/** Why a decode worker computes the prompt. */
function local([best, ...others]: readonly [Candidate, ...Candidate[]]): string {
  if (!best.isLocalPrefill) return "";
  const isChosen = others.some(({ prefill }) => prefill !== undefined);
  return isChosen ? ", which computes the prompt as well" : ", as no prefill worker is left";
}

/** What is fetched rather than computed, or could be. */
function reuse({ fetch, recompute }: Candidate): string {
  const plan = fetch ?? recompute;
  if (plan === undefined) return "";
  const { tokenCount, holder, fetchMs, computeMs, rate } = plan;
  const tokens = `${tokenCount} tokens that ${holder.facts.workerId} has cached`;
  const fetching = `${ms(fetchMs)} ${rateText(rate)}`;
  return fetch === undefined
    ? `computes ${tokens}: ${ms(computeMs)}, fetching ${fetching}; `
    : `fetches ${tokens}: ${fetching}, computing ${ms(computeMs)}; `;
}

/** What is assumed of every link is no news. */
function measured(rate: KvRate | undefined): string {
  return rate === undefined || (rate.ageMs === undefined && !rate.isOfSource) ? "" : ` ${rateText(rate)}`;
}

const SCALES = [
  [1e9, "GB"],
  [1e6, "MB"],
  [1e3, "kB"],
] as const;

/** `at 12.3 MB/s, measured 4 s ago, fast KV`. */
function rateText({ bytesPerSecond, accuracy, ageMs, isOfSource, waitMs }: KvRate): string {
  const [scale, unit] = SCALES.find(([least]) => bytesPerSecond >= least) ?? [1, "B"];
  const guess = isOfSource ? "as others measured from there" : "assumed";
  const origin = ageMs === undefined ? guess : `measured ${Math.round(ageMs / 1_000)} s ago`;
  const busy = waitMs < 1 ? "" : `, busy for ${ms(waitMs)}`;
  const kind = accuracy === "exact" ? "" : `, ${accuracy} KV`;
  return `at ${Number((bytesPerSecond / scale).toPrecision(3))} ${unit}/s, ${origin}${kind}${busy}`;
}

function ms(value: number): string {
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}
