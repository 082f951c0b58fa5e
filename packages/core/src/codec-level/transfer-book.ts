import { assert } from "../assert.ts";
import type { Instant } from "../time.ts";
import { observedLevel } from "./estimates.ts";
import type { CodecLevelFacts, KvAccuracy, KvChunkFacts, LinkFacts } from "./fetch-time.ts";
import { linkRates, type MeasuredLink } from "./link-rates.ts";
import { type LinkSpeed, observedLink, type TrafficFacts } from "./link-speed.ts";
import { planTransfer } from "./plan-transfer.ts";

/** A codec profile as its owner announces it; levels by their number, undefined where nobody should use one. */
export interface CodecProfileFacts {
  /** Hex. */
  readonly id: string;
  readonly levels: readonly (CodecLevelFacts | undefined)[];
}

/** Where KV comes from. */
export interface LevelSource {
  /** What was learnt of it is kept under this name. */
  readonly peer: string;
  /** Profiles that it has, hex. */
  readonly peerProfileIds: readonly string[];
  /** Whether coded levels are to be had between the two layouts at all. */
  readonly isWhole: boolean;
}

export interface KnownLevels {
  /** Hex; undefined where there is only raw. */
  readonly profileId: string | undefined;
  readonly levels: readonly (CodecLevelFacts | undefined)[];
}

/** What a transfer between two sidecars asks. */
export interface LevelQuestion extends LevelSource {
  readonly tokenBegin: number;
  readonly tokenEnd: number;
  readonly bytesPerToken: number;
  /** Least exact accuracy that the request allows. */
  readonly budget: KvAccuracy;
  /** Until the KV is wanted; undefined: as soon as possible. */
  readonly deadlineMs: number | undefined;
  /** What the receiver can do instead of waiting; undefined: nothing. */
  readonly compute?: ComputeFacts;
  /** Of this very request, transfers from the peer that go on. */
  readonly underWay?: UnderWayFacts;
  /** See `CHUNK_TOKENS`, which it is otherwise. */
  readonly chunkTokens?: number;
}

export interface ComputeFacts {
  /** For each token, once all before it are there. */
  readonly msPerToken: number;
  /** Until it has computed what it is at. */
  readonly busyMs: number;
}

export interface UnderWayFacts {
  readonly streamCount: number;
  /** Encoded, still to come. */
  readonly queuedBytes: number;
  /** What they get now, in bytes a millisecond; undefined where it is too early to tell. */
  readonly bytesPerMs: number | undefined;
}

/** How the tokens of a transfer shall travel. */
export interface LevelChoice {
  /** Hex; undefined where all is raw. */
  readonly profileId: string | undefined;
  /** Tokens from the first on that are computed meanwhile. */
  readonly computedTokenCount: number;
  /** Of what follows them, in order; the last ends at the question's end. */
  readonly spans: readonly LevelSpan[];
  readonly approximateTokenCount: number;
  /** See `TransferPlan`. */
  readonly predictedMs: number;
  readonly meetsDeadline: boolean;
}

export interface LevelSpan {
  readonly tokenEnd: number;
  readonly level: number;
  readonly name: string;
  readonly isApproximate: boolean;
}

/** Tokens that are decided on together. Larger: fewer spans; smaller: the border between two levels is finer. A multiple of every block size. */
const CHUNK_TOKENS = 256;
/** Spans that a source accepts. */
const SPANS_MAX = 64;
/**
 * What encoding exact KV has to save. It takes both sides' processors from what they compute; larger: more of them is left for that, smaller: busy
 * links are relieved sooner.
 */
const SAVING_MIN_MS = 40;
/** A link of which nothing is known: fast, so that the first transfer finds out. */
const UNKNOWN_BYTES_PER_MS = 1.25e6;
const LATENCY_MS = 0.5;
/** What the estimate of a link grows by that is not used because of it. Larger: one that recovered is found out sooner; smaller: less is tried in vain. */
const PASSED_OVER_GROWTH = 1.2;
/** Peers that are remembered. */
const PEERS_MAX = 1_024;

/** Links that are told at once, the newest. Larger: larger messages; smaller: routers know fewer links of a worker that has just come to them. */
const TOLD_MAX = 32;

interface Peer {
  speed: LinkSpeed | undefined;
  /** The last measurement's number among all, and its time; 0 before the first. */
  measurement: number;
  measuredAt: Instant;
  activeStreams: number;
  /** Of each profile, by its id: what its levels cost with this peer. */
  readonly levels: Map<string, (CodecLevelFacts | undefined)[]>;
}

/**
 * What one worker knows of the links to others and of the codec's levels, and the choice among them for each transfer. Predictions are hints:
 * wrong ones cost time, and never more accuracy than the request allows.
 */
export class TransferBook {
  readonly #profiles: readonly CodecProfileFacts[];
  readonly #peers = new Map<string, Peer>();
  #measurementCount = 0;

  /** `profiles`: what this side has, the best last. Level 0 of each is raw. */
  constructor(profiles: readonly CodecProfileFacts[]) {
    this.#profiles = profiles;
  }

  /** A transfer from a peer begins; it shares the link with the others. */
  begin(peer: string): void {
    this.#peer(peer).activeStreams++;
  }

  /** It ended. */
  end(peer: string): void {
    const known = this.#peers.get(peer);
    if (known === undefined) return;
    assert(known.activeStreams > 0, "more transfers ended than began");
    known.activeStreams--;
  }

  /** Undefined before the first transfer. */
  linkOf(peer: string): LinkSpeed | undefined {
    return this.#peers.get(peer)?.speed;
  }

  /** What a transfer told, by level. To be called before its `end`. */
  observe(
    peer: string,
    profileId: string | undefined,
    traffic: ReadonlyMap<number, TrafficFacts>,
    transferMs: number,
    now: Instant,
  ): void {
    const known = this.#peer(peer);
    const sum = { wireBytes: 0, rawBytes: 0, encodeMs: 0, decodeMs: 0 };
    const levels = profileId === undefined ? undefined : this.#levels(known, profileId);
    for (const [level, facts] of traffic) {
      sum.wireBytes += facts.wireBytes;
      sum.rawBytes += facts.rawBytes;
      sum.encodeMs += facts.encodeMs;
      sum.decodeMs += facts.decodeMs;
      const own = levels?.[level];
      if (levels && own && level > 0) levels[level] = observedLevel(own, facts);
    }
    const speed = observedLink(known.speed, sum, transferMs, known.activeStreams);
    if (speed === known.speed) return;
    known.speed = speed;
    known.measurement = ++this.#measurementCount;
    known.measuredAt = now;
  }

  /** How many measurements of links there were. */
  get measurementCount(): number {
    return this.#measurementCount;
  }

  /** What is known of the links that were measured after so many measurements, the newest first and not more than a message should hold. */
  measuredAfter(count: number): readonly MeasuredLink[] {
    if (count >= this.#measurementCount) return [];
    return [...this.#peers]
      .filter(([, { measurement }]) => measurement > count)
      .sort(([, a], [, b]) => b.measurement - a.measurement)
      .slice(0, TOLD_MAX)
      .flatMap(([source, { speed, measuredAt, levels }]) => {
        if (speed === undefined) return [];
        const known = [RAW, ...[...levels.values()].flat().filter((level) => level !== undefined)];
        return [{ source, measuredAt, rates: linkRates(known, speed.usual) }];
      });
  }

  /**
   * Nothing was asked of a peer because its link is thought to be slow. The estimate grows, as nobody else would find out that it is faster now; one
   * pull that is taken back is the price.
   */
  passedOver(peer: string): void {
    const known = this.#peers.get(peer);
    if (known?.speed) known.speed = { ...known.speed, usual: known.speed.usual * PASSED_OVER_GROWTH };
  }

  /** The best profile that both sides have and its levels, by their numbers; undefined where nobody should use one. */
  levelsOf({ peer, peerProfileIds, isWhole }: LevelSource): KnownLevels {
    const profile = isWhole ? this.#profiles.findLast(({ id }) => peerProfileIds.includes(id)) : undefined;
    if (profile === undefined) return { profileId: undefined, levels: [RAW] };
    return { profileId: profile.id, levels: this.#levels(this.#peer(peer), profile.id) };
  }

  /** How a transfer's tokens shall travel. */
  choose(question: LevelQuestion): LevelChoice {
    const { peer, tokenBegin, tokenEnd, bytesPerToken, budget, deadlineMs, compute } = question;
    assert(tokenEnd > tokenBegin, "a transfer of no tokens");
    const known = this.#peer(peer);
    const { profileId: bestId, levels } = this.levelsOf(question);
    const ends = chunkEnds(tokenBegin, tokenEnd, question.chunkTokens ?? CHUNK_TOKENS);
    const chunks = ends.map((end, index): KvChunkFacts => {
      const tokens = end - (ends[index - 1] ?? tokenBegin);
      return {
        rawBytes: tokens * bytesPerToken,
        computeMs: tokens * (compute?.msPerToken ?? Number.POSITIVE_INFINITY),
      };
    });
    const mayCompute = compute !== undefined;
    const computeBusyMs = compute?.busyMs ?? 0;
    const link = linkFacts(known, question.underWay);
    const planned = (allowed: readonly CodecLevelFacts[]) =>
      planTransfer({ chunks, levels: allowed, link, budget, deadlineMs, mayCompute, computeBusyMs });
    const best = planned(levels.filter((level) => level !== undefined));
    const raw = planned(levels.slice(0, 1) as [CodecLevelFacts]);
    const isRawInTime =
      raw.meetsDeadline && raw.bytesPerMs <= best.bytesPerMs && raw.computedCount <= best.computedCount;
    const isWorthIt = best.meetsDeadline || raw.predictedMs - best.predictedMs >= SAVING_MIN_MS;
    const plan = isRawInTime || !isWorthIt ? raw : best;
    const spans: LevelSpan[] = [];
    let approximateTokenCount = 0;
    for (const [index, chosen] of plan.levels.entries()) {
      const end = ends[plan.computedCount + index] as number;
      const begin = ends[plan.computedCount + index - 1] ?? tokenBegin;
      if (chosen.accuracy !== "exact") approximateTokenCount += end - begin;
      const level = levels.indexOf(chosen);
      if (spans.at(-1)?.level === level) spans.pop();
      spans.push({ tokenEnd: end, level, name: chosen.name, isApproximate: chosen.accuracy !== "exact" });
    }
    const profileId = spans.every(({ level }) => level === 0) ? undefined : bestId;
    const computedTokenCount = plan.computedCount === 0 ? 0 : (ends[plan.computedCount - 1] as number) - tokenBegin;
    const { predictedMs, meetsDeadline } = plan;
    return { profileId, computedTokenCount, spans, approximateTokenCount, predictedMs, meetsDeadline };
  }

  #peer(name: string): Peer {
    const known = this.#peers.get(name);
    if (known !== undefined) return known;
    if (this.#peers.size >= PEERS_MAX) {
      // The one that is known longest and has no transfer now.
      for (const [oldest, { activeStreams }] of this.#peers) {
        if (activeStreams > 0) continue;
        this.#peers.delete(oldest);
        break;
      }
    }
    const peer: Peer = {
      ...{ speed: undefined, measurement: 0, measuredAt: 0 as Instant },
      ...{ activeStreams: 0, levels: new Map() },
    };
    this.#peers.set(name, peer);
    return peer;
  }

  #levels(peer: Peer, profileId: string): (CodecLevelFacts | undefined)[] {
    const known = peer.levels.get(profileId);
    if (known !== undefined) return known;
    const levels = [...(this.#profiles.find(({ id }) => id === profileId)?.levels ?? [])];
    peer.levels.set(profileId, levels);
    return levels;
  }
}

const RAW: CodecLevelFacts = {
  ...{ name: "raw", accuracy: "exact", ratio: 1 },
  encodeBytesPerMs: Number.POSITIVE_INFINITY,
  decodeBytesPerMs: Number.POSITIVE_INFINITY,
};

/** What is under way for the same request goes before what is asked for now, and is no stranger that shares the link. */
function linkFacts({ speed, activeStreams }: Peer, own: UnderWayFacts | undefined): LinkFacts {
  // A pull that begins anew is not open for a moment.
  const share = Math.max(0, activeStreams - (own?.streamCount ?? 0)) + 1;
  const atMost = own?.bytesPerMs === undefined ? Number.POSITIVE_INFINITY : own.bytesPerMs * share;
  return {
    bytesPerMs: Math.min(speed?.usual ?? UNKNOWN_BYTES_PER_MS, atMost),
    lowBytesPerMs: Math.min(speed?.low ?? UNKNOWN_BYTES_PER_MS, atMost),
    activeStreams: share,
    latencyMs: LATENCY_MS,
    queuedBytes: own?.queuedBytes ?? 0,
  };
}

/** Ends at multiples of a chunk, of as many chunks as make few enough spans. */
function chunkEnds(tokenBegin: number, tokenEnd: number, chunkTokens: number): readonly number[] {
  const chunk = chunkTokens * Math.max(1, Math.ceil((tokenEnd - tokenBegin) / chunkTokens / (SPANS_MAX - 1)));
  const ends: number[] = [];
  for (let end = tokenBegin - (tokenBegin % chunk) + chunk; end < tokenEnd; end += chunk) ends.push(end);
  return [...ends, tokenEnd];
}
