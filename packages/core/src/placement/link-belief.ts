import type { KvAccuracy, MeasuredLink } from "../codec-level/index.ts";
import { addNanos, type Instant, msFromNanos, nanosBetween, nanosFromMs } from "../time.ts";

/**
 * Time in which what was measured of a link comes half way back to what is assumed of any. A link that is believed to be slow is used by nobody, and
 * so never measured again: it has to be tried. Larger: one that recovered is found out later; smaller: more is tried in vain.
 */
const HALF_LIFE_MS = 60_000;
/** Sources of one worker that are remembered; the one told of longest ago is forgotten first. */
const SOURCES_MAX = 128;
/** Workers that measured links from a source before those tell of the others from there: one may lie behind a slow link of its own. */
const TELLING_COUNT = 2;
/** Between two looks at all links from a source. Larger: placements are cheaper; smaller: a change is seen sooner. */
const SOURCE_LOOK_MS = 100;

/** At what speed KV is believed to come from a sidecar to a worker. */
export interface KvRate {
  /** Raw KV, at the level at which it comes soonest of those that the request allows. */
  readonly bytesPerSecond: number;
  /** Least exact KV that the request allows. */
  readonly accuracy: KvAccuracy;
  /** Since the link was measured last; undefined: it never was. */
  readonly ageMs: number | undefined;
  /** It was not measured, and is believed to be as slow as the quickest of those from there that were. */
  readonly isOfSource: boolean;
  /** Until the link has carried what this router placed over it before; 0 where it was not measured. */
  readonly waitMs: number;
}

/** A link's two ends; a worker or a store that tells no transfer address is known by no link. */
export interface LinkSource {
  readonly transferAddress?: string | undefined;
}
export interface LinkReceiver {
  readonly workerId: string;
}

/** What is believed of all links, for one request at one time. */
export interface KvRates {
  /** What is believed of a link of which nothing is known. */
  readonly assumed: KvRate;
  /** No link was measured, whosever. */
  readonly areAllAssumed: boolean;
  /** Of the links from one source. */
  from(source: LinkSource): RatesFromOne;
}

/** At which KV is believed to come to a worker. */
export type RatesFromOne = (receiver: LinkReceiver) => KvRate;

/** All links alike. */
export function assumedRates(bytesPerSecond: number, accuracy: KvAccuracy = "exact"): KvRates {
  const assumed: KvRate = { bytesPerSecond, accuracy, ageMs: undefined, isOfSource: false, waitMs: 0 };
  return { assumed, areAllAssumed: true, from: () => () => assumed };
}

interface KnownLink {
  readonly measured: MeasuredLink;
  /** When it will have carried what was placed over it. */
  busyUntil: Instant;
}

interface KnownSource {
  readonly links: Map<string, KnownLink>;
  /** What was believed at the last look of links from it that were not measured. */
  readonly others: Map<KvAccuracy, { readonly rate: KvRate; readonly at: Instant }>;
}

/**
 * What workers have told of the links over which KV comes to them, and what was placed over those. A measured rate is believed when it is new and
 * goes back to the assumed one as it gets old, along a line of their logarithms: rates differ by factors. A link that was not measured is assumed to be
 * like any, but no quicker than the quickest of several from the same source that were. A hint: a wrong one costs a slower choice, as the worker
 * that fetches measures anew and computes what does not come.
 */
export class LinkBelief {
  readonly #assumedBytesPerSecond: number;
  /** By the source's transfer address, then by worker: a placement asks for few sources, and many workers. */
  readonly #known = new Map<string, KnownSource>();
  /** Of each worker, those told of longest ago first. */
  readonly #sources = new Map<string, Set<string>>();

  /** `assumedBytesPerSecond`: of a link of which nothing is known. */
  constructor(assumedBytesPerSecond: number) {
    this.#assumedBytesPerSecond = assumedBytesPerSecond;
  }

  told(workerId: string, links: readonly MeasuredLink[]): void {
    if (links.length === 0) return;
    const sources = this.#sources.get(workerId) ?? new Set<string>();
    this.#sources.set(workerId, sources);
    for (const measured of links) {
      const { source, measuredAt } = measured;
      const known = this.#known.get(source) ?? { links: new Map(), others: new Map() };
      const { busyUntil = measuredAt } = known.links.get(workerId) ?? {};
      known.links.set(workerId, { measured, busyUntil });
      this.#known.set(source, known);
      sources.delete(source);
      sources.add(source);
    }
    for (const oldest of sources) {
      if (sources.size <= SOURCES_MAX) break;
      sources.delete(oldest);
      this.#drop(oldest, workerId);
    }
  }

  /** KV was placed over a link that begins to travel then and takes the link so long. Of one that nobody measured nothing is known that could be late. */
  placed(
    receiver: LinkReceiver,
    { transferAddress = "" }: LinkSource,
    { startsInMs, linkMs }: { readonly startsInMs: number; readonly linkMs: number },
    now: Instant,
  ): void {
    const link = this.#known.get(transferAddress)?.links.get(receiver.workerId);
    if (link === undefined) return;
    link.busyUntil = addNanos(latest(link.busyUntil, addNanos(now, nanosFromMs(startsInMs))), nanosFromMs(linkMs));
  }

  /** The worker is gone, or there anew: it tells again what it knows. */
  forget(workerId: string): void {
    for (const source of this.#sources.get(workerId) ?? []) this.#drop(source, workerId);
    this.#sources.delete(workerId);
  }

  ratesFor(accuracy: KvAccuracy, now: Instant): KvRates {
    const none = assumedRates(this.#assumedBytesPerSecond, accuracy);
    const { assumed } = none;
    return {
      assumed,
      areAllAssumed: this.#known.size === 0,
      from: (source) => {
        const known = this.#known.get(source.transferAddress ?? "");
        if (known === undefined) return none.from(source);
        return ({ workerId }) => {
          const link = known.links.get(workerId);
          return link === undefined ? otherRate(known, assumed, now) : believed(link, assumed, now);
        };
      },
    };
  }

  #drop(source: string, workerId: string): void {
    const known = this.#known.get(source);
    known?.links.delete(workerId);
    known?.others.clear();
    if (known?.links.size === 0) this.#known.delete(source);
  }
}

function believed({ measured, busyUntil }: KnownLink, assumed: KvRate, now: Instant): KvRate {
  const { measuredAt, rates } = measured;
  const ageMs = Math.max(0, msFromNanos(nanosBetween(measuredAt, now)));
  const waitMs = msFromNanos(nanosBetween(now, latest(busyUntil, now)));
  const weight = 2 ** (-ageMs / HALF_LIFE_MS);
  const { accuracy } = assumed;
  const factor = (rates[accuracy] * 1_000) / assumed.bytesPerSecond;
  const bytesPerSecond = assumed.bytesPerSecond * factor ** weight;
  return { bytesPerSecond, accuracy, ageMs, isOfSource: false, waitMs };
}

/** Of a link from a source that was not measured. */
function otherRate({ links, others }: KnownSource, assumed: KvRate, now: Instant): KvRate {
  if (links.size < TELLING_COUNT) return assumed;
  const before = others.get(assumed.accuracy);
  if (before !== undefined && msFromNanos(nanosBetween(before.at, now)) < SOURCE_LOOK_MS) return before.rate;
  let quickest = 0;
  for (const link of links.values()) quickest = Math.max(quickest, believed(link, assumed, now).bytesPerSecond);
  const isSlow = quickest < assumed.bytesPerSecond;
  const rate = isSlow ? { ...assumed, bytesPerSecond: quickest, isOfSource: true } : assumed;
  others.set(assumed.accuracy, { rate, at: now });
  return rate;
}

function latest(a: Instant, b: Instant): Instant {
  return a > b ? a : b;
}
