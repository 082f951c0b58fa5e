import type { KvAccuracy, MeasuredLink } from "../codec-level/index.ts";
import { type Instant, msFromNanos, nanosBetween } from "../time.ts";

/**
 * Time in which what was measured of a link comes half way back to what is assumed of any. A link that is believed to be slow is used by nobody, and
 * so never measured again: it has to be tried. Larger: one that recovered is found out later; smaller: more is tried in vain.
 */
const HALF_LIFE_MS = 60_000;
/** Sources of one worker that are remembered; the one told of longest ago is forgotten first. */
const SOURCES_MAX = 128;

/** At what speed KV is believed to come from a sidecar to a worker. */
export interface KvRate {
  /** Raw KV, at the level at which it comes soonest of those that the request allows. */
  readonly bytesPerSecond: number;
  /** Least exact KV that the request allows. */
  readonly accuracy: KvAccuracy;
  /** Since the link was measured last; undefined: it never was, and is assumed to be like any. */
  readonly ageMs: number | undefined;
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
  /** What is believed of a link that was not measured. */
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
  const assumed: KvRate = { bytesPerSecond, accuracy, ageMs: undefined };
  return { assumed, areAllAssumed: true, from: () => () => assumed };
}

/**
 * What workers have told of the links over which KV comes to them. A measured rate is believed when it is new and goes back to the assumed one as it
 * gets old, along a line of their logarithms: rates differ by factors. A hint: a wrong one costs a slower choice, as the worker that
 * fetches measures anew and computes what does not come.
 */
export class LinkBelief {
  readonly #assumedBytesPerSecond: number;
  /** By the source's transfer address, then by worker: a placement asks for few sources, and many workers. */
  readonly #links = new Map<string, Map<string, MeasuredLink>>();
  /** Of each worker, those told of longest ago first. */
  readonly #sources = new Map<string, Set<string>>();

  /** `assumedBytesPerSecond`: of a link that was not measured. */
  constructor(assumedBytesPerSecond: number) {
    this.#assumedBytesPerSecond = assumedBytesPerSecond;
  }

  told(workerId: string, links: readonly MeasuredLink[]): void {
    if (links.length === 0) return;
    const sources = this.#sources.get(workerId) ?? new Set<string>();
    this.#sources.set(workerId, sources);
    for (const link of links) {
      const receivers = this.#links.get(link.source) ?? new Map<string, MeasuredLink>();
      this.#links.set(link.source, receivers.set(workerId, link));
      sources.delete(link.source);
      sources.add(link.source);
    }
    for (const oldest of sources) {
      if (sources.size <= SOURCES_MAX) break;
      sources.delete(oldest);
      this.#drop(oldest, workerId);
    }
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
      areAllAssumed: this.#links.size === 0,
      from: (source) => {
        const receivers = this.#links.get(source.transferAddress ?? "");
        if (receivers === undefined) return none.from(source);
        return ({ workerId }) => {
          const link = receivers.get(workerId);
          return link === undefined ? assumed : believed(link, assumed, now);
        };
      },
    };
  }

  #drop(source: string, workerId: string): void {
    const receivers = this.#links.get(source);
    receivers?.delete(workerId);
    if (receivers?.size === 0) this.#links.delete(source);
  }
}

function believed({ measuredAt, rates }: MeasuredLink, assumed: KvRate, now: Instant): KvRate {
  const { accuracy } = assumed;
  const ageMs = Math.max(0, msFromNanos(nanosBetween(measuredAt, now)));
  const weight = 2 ** (-ageMs / HALF_LIFE_MS);
  const factor = (rates[accuracy] * 1_000) / assumed.bytesPerSecond;
  return { bytesPerSecond: assumed.bytesPerSecond * factor ** weight, accuracy, ageMs };
}
