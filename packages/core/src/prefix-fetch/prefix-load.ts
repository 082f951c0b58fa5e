import { assert } from "../assert.ts";
import {
  type CodecLevelFacts,
  isWithin,
  type KvAccuracy,
  type LevelChoice,
  type LevelSource,
  type LevelSpan,
  type TransferBook,
} from "../codec-level/index.ts";
import { overtaken } from "./overtaken.ts";
import type { TokenSpan } from "./token-span.ts";
import { type Pull, remainingBytes, UnderWay } from "./under-way.ts";

/** Tokens that are decided on together, if blocks are not larger. Larger: fewer decisions; smaller: device and link meet closer. */
const CHUNK_TOKENS = 64;
/** Pulls that are kept on the link, so that it does not wait while one is encoded or decoded. */
const PULLS_MAX = 2;
/** Chunks of one pull. Larger: fewer calls; smaller: less is begun that turns out to be slow. */
const PULL_CHUNKS_MAX = 4;
/** What the device computes at once, since a step that has begun cannot be stopped when the KV arrives that it computes. Larger: fewer steps. */
const COMPUTE_MS = 60;
/** What comes within this time without the device leaves it to others. */
const SPARED_MS = 30;
/** Between two looks at what is best while nothing happens. Larger: fewer plans, each of which takes a millisecond; smaller: a change is seen sooner. */
const REVIEW_MS = 30;
/** Time for the holder's first answer. Larger: a dead one costs more; smaller: computing begins that the answer makes useless. */
const ANSWER_MS = 30;
/** What another pull of the same at the densest level has to save of the bytes still to come. Larger: less is sent twice. */
const DENSER_SAVING = 0.3;

export interface PrefixLoadFacts {
  /** What is missing: whole blocks. */
  readonly span: TokenSpan;
  readonly blockSize: number;
  readonly bytesPerToken: number;
  /** Least exact KV that will do. */
  readonly budget: KvAccuracy;
  /** From the load's beginning until all must be there; undefined: as soon as possible. */
  readonly deadlineMs: number | undefined;
  readonly book: TransferBook;
  /** What computing a token has to be feared to take now. */
  readonly computeMsPerToken: () => number;
}

/** What is to be done now. */
export type LoadAction =
  /** Ask for these tokens. */
  | PullAction<"pull">
  /** Let the device compute up to `end`, and tell `computed` when it has. */
  | { readonly kind: "compute"; readonly end: number }
  /** Stop the pull that begins there, wait until nothing writes, tell `released`, and then let the device compute up to `end`. */
  | { readonly kind: "takeBack"; readonly begin: number; readonly end: number }
  /** Stop the pull of the same tokens, wait until nothing writes, and ask for them at this level instead. */
  | PullAction<"pullDenser">
  /** Nothing is on its way, and whatever is not there is best computed at once. */
  | { readonly kind: "end" };

interface PullAction<Kind extends string> extends TokenSpan {
  readonly kind: Kind;
  readonly level: Omit<LevelSpan, "tokenEnd">;
  /** Hex; undefined for raw. */
  readonly profileId: string | undefined;
}

type ChunkState = "open" | "pulled" | "computing" | "here";

/**
 * Loads a prefix that another worker or a store holds: the device computes from the front while the link brings the end, chunk by chunk, each at the
 * level that the `TransferBook` chooses then from what was measured meanwhile. Pure: told what happens and when, it says what to do.
 *
 * A token can be computed only when all before it is there, so computing begins at the front. What has come stays worth it whatever happens to the
 * rest, and the more so the later it is in the text, where computing a token takes longest: so fetching begins at the back. What is late on the link
 * when the device comes to it is taken back and computed (`overtaken`); what has begun at an exact level on a link that then grew slow is asked for
 * again at a denser one, where the request allows it. So whatever the link does, a load takes little longer than computing, and little longer
 * than fetching; a link that carries nothing is as slow as it is silent.
 *
 * After Cake (Jin et al., "Compute or Load KV Cache? Why not both?", 2024), which fetches and computes from both ends at full speed, and CacheGen
 * (Liu et al., SIGCOMM 2024, section 5.3), which chooses a level or text for each chunk in turn.
 */
export class PrefixLoad {
  readonly #facts: PrefixLoadFacts;
  readonly #chunkTokens: number;
  #end: number;
  #states: ChunkState[];
  readonly #underWay = new UnderWay();
  /** Pulls that are taken back and may still write, by their first tokens. */
  readonly #takenBack = new Map<number, Pull>();
  #computing: { readonly end: number; readonly sinceMs: number } | undefined;
  #source: LevelSource | undefined;
  /** When nothing has happened until then, it is looked again what is best. */
  #reviewAtMs = 0;
  #hasEnded = false;
  #hasPulled = false;
  #isLate = false;

  constructor(facts: PrefixLoadFacts) {
    this.#facts = facts;
    const { span, blockSize } = facts;
    this.#chunkTokens = Math.ceil(CHUNK_TOKENS / blockSize) * blockSize;
    this.#end = span.end;
    this.#states = Array.from({ length: Math.ceil((span.end - span.begin) / this.#chunkTokens) }, () => "open");
  }

  /** Whether anything that was to be fetched took longer than computing it, so that it was computed. */
  get isLate(): boolean {
    return this.#isLate;
  }

  /** The holder lends what is before `end`, a multiple of the block size behind all that is computed. */
  lent(source: LevelSource, end: number): void {
    assert(end <= this.#end && end > (this.#computing?.end ?? this.#facts.span.begin), "nothing is lent");
    this.#source = source;
    this.#end = end;
    this.#states.length = Math.ceil((end - this.#facts.span.begin) / this.#chunkTokens);
  }

  /** No coded level is to be had from the holder after all. */
  onlyRaw(): void {
    if (this.#source) this.#source = { ...this.#source, isWhole: false };
  }

  /** Undefined: nothing for now. To be asked again whenever something was told or done, and from time to time. */
  next(nowMs: number): LoadAction | undefined {
    if (this.#hasEnded) return undefined;
    const source = this.#source;
    const first = this.#states.indexOf("open");
    const isQuiet = this.#underWay.count === 0 && this.#takenBack.size === 0;
    if (first < 0) return isQuiet ? this.#ended() : this.#waiting(nowMs);
    const isFront = this.#states.findIndex((state) => state !== "here") === first;
    const mayCompute = this.#computing === undefined && isFront;
    if (source === undefined) return this.#unanswered(first, mayCompute, nowMs);
    const last = this.#states.lastIndexOf("open");
    const mayPull = this.#underWay.count < PULLS_MAX;
    if (!mayPull && !mayCompute) return this.#isFeared(nowMs) ? this.#denser(nowMs) : undefined;
    if (nowMs < this.#reviewAtMs) return undefined;
    const choice = this.#choose(source, first, last, nowMs);
    if (choice.spans.length === 0 && isQuiet) return this.#ended();
    if (mayCompute && choice.computedTokenCount > 0) return this.#compute(first, choice.computedTokenCount, nowMs);
    const denser = choice.meetsDeadline ? undefined : this.#denser(nowMs);
    if (denser !== undefined) return denser;
    const [span, before] = [choice.spans.at(-1), choice.spans.at(-2)];
    if (!mayPull || span === undefined) {
      this.#reviewAtMs = nowMs + REVIEW_MS;
      return undefined;
    }
    // Large pulls first, so that there are few, and small ones when device and link come near each other.
    const wanted = Math.floor((last + 1 - first - choice.computedTokenCount / this.#chunkTokens) / (2 * PULLS_MAX));
    const sameLevel = last + 1 - Math.max(first, (before?.tokenEnd ?? 0) / this.#chunkTokens);
    const begin = last + 1 - Math.max(1, Math.min(PULL_CHUNKS_MAX, wanted, sameLevel));
    this.#hasPulled = true;
    const ratio = this.#facts.book.levelsOf(source).levels[span.level]?.ratio ?? 1;
    const tokens = { begin: this.#tokenAt(begin), end: this.#tokenAt(last + 1) };
    return this.#pull("pull", tokens, { ...span, ratio }, choice.profileId, nowMs);
  }

  /** So many bytes of the pull that begins there have come. */
  received(begin: number, bytes: number, nowMs: number): void {
    this.#underWay.received(begin, bytes, nowMs);
  }

  /** All of the pull that begins there is in place. */
  arrived(begin: number): void {
    this.#reviewAtMs = 0;
    const pull = this.#underWay.end(begin);
    if (pull) this.#set(pull, "here");
  }

  /** Nothing of the pull that was taken back writes any more. */
  released(begin: number): void {
    this.#reviewAtMs = 0;
    const pull = this.#takenBack.get(begin);
    if (pull === undefined) return;
    this.#takenBack.delete(begin);
    this.#set({ begin: this.#computing?.end ?? begin, end: pull.end }, "open");
  }

  /** The device has computed what it was let. */
  computed(): void {
    this.#reviewAtMs = 0;
    assert(this.#computing !== undefined, "nothing was to be computed");
    this.#set({ begin: this.#facts.span.begin, end: this.#computing.end }, "here");
    this.#computing = undefined;
  }

  #tokenAt(chunk: number): number {
    return Math.min(this.#end, this.#facts.span.begin + chunk * this.#chunkTokens);
  }

  #set({ begin, end }: TokenSpan, state: ChunkState): void {
    const chunkOf = (token: number) => Math.ceil((token - this.#facts.span.begin) / this.#chunkTokens);
    this.#states.fill(state, chunkOf(begin), chunkOf(end));
  }

  #ended(): LoadAction {
    this.#hasEnded = true;
    if (this.#source && !this.#hasPulled) this.#facts.book.passedOver(this.#source.peer);
    this.#isLate ||= this.#source === undefined || this.#states.includes("open");
    return { kind: "end" };
  }

  /** Everything is computed, here, or on its way. */
  #waiting(nowMs: number): LoadAction | undefined {
    const front = this.#states.findIndex((state) => state !== "here");
    const pull = this.#computing === undefined ? this.#underWay.at(this.#tokenAt(front)) : undefined;
    if (pull === undefined || !this.#isOvertaken(nowMs)) return this.#isFeared(nowMs) ? this.#denser(nowMs) : undefined;
    this.#underWay.end(pull.begin);
    this.#takenBack.set(pull.begin, pull);
    this.#isLate = true;
    const end = this.#tokenAt(front + 1);
    this.#computing = { end, sinceMs: nowMs };
    this.#set({ begin: pull.begin, end }, "computing");
    return { kind: "takeBack", begin: pull.begin, end };
  }

  /** The holder has not answered yet. */
  #unanswered(first: number, mayCompute: boolean, nowMs: number): LoadAction | undefined {
    // Waiting as long as a chunk takes costs at most twice that, should the answer never come.
    if (!mayCompute || nowMs < ANSWER_MS + this.#chunkTokens * this.#facts.computeMsPerToken()) return undefined;
    return this.#compute(first, this.#end - this.#tokenAt(first), nowMs);
  }

  #compute(first: number, tokenCount: number, nowMs: number): LoadAction {
    const chunkMs = this.#chunkTokens * this.#facts.computeMsPerToken();
    const count = Math.max(1, Math.min(Math.floor(COMPUTE_MS / chunkMs), Math.floor(tokenCount / this.#chunkTokens)));
    const end = this.#tokenAt(first + count);
    this.#computing = { end, sinceMs: nowMs };
    this.#set({ begin: this.#tokenAt(first), end }, "computing");
    return { kind: "compute", end };
  }

  /** How the open chunks shall come; tokens are counted from the load's first one, so that chunks end at multiples of their size. */
  #choose(source: LevelSource, first: number, last: number, nowMs: number): LevelChoice {
    const { span, bytesPerToken, budget, deadlineMs, book } = this.#facts;
    const underWay = {
      streamCount: this.#underWay.count,
      queuedBytes: this.#underWay.queuedBytes,
      bytesPerMs: this.#underWay.speedAt(nowMs),
    };
    const question = {
      ...{ ...source, bytesPerToken, budget, underWay, chunkTokens: this.#chunkTokens },
      ...{ tokenBegin: first * this.#chunkTokens, tokenEnd: this.#tokenAt(last + 1) - span.begin },
      deadlineMs: deadlineMs === undefined ? undefined : Math.max(0, deadlineMs - nowMs),
    };
    const fetched = book.choose(question);
    if (fetched.predictedMs <= SPARED_MS && (deadlineMs === undefined || fetched.meetsDeadline)) return fetched;
    return book.choose({
      ...question,
      compute: { msPerToken: this.#facts.computeMsPerToken(), busyMs: this.#busyMs(nowMs) },
    });
  }

  #busyMs(nowMs: number): number {
    const computing = this.#computing;
    if (computing === undefined) return 0;
    const tokenCount = this.#states.filter((state) => state === "computing").length * this.#chunkTokens;
    return Math.max(0, tokenCount * this.#facts.computeMsPerToken() - (nowMs - computing.sinceMs));
  }

  #pull<Kind extends "pull" | "pullDenser">(
    kind: Kind,
    { begin, end }: TokenSpan,
    { level, name, isApproximate, ratio }: Omit<LevelSpan, "tokenEnd"> & { readonly ratio: number },
    profileId: string | undefined,
    nowMs: number,
  ): PullAction<Kind> {
    this.#set({ begin, end }, "pulled");
    this.#underWay.begin({ begin, end }, this.#wireBytes({ begin, end }, ratio), nowMs);
    return { kind, begin, end, level: { level, name, isApproximate }, profileId: level === 0 ? undefined : profileId };
  }

  #wireBytes({ begin, end }: TokenSpan, ratio: number): number {
    return ((end - begin) * this.#facts.bytesPerToken) / ratio;
  }

  /** Whether what is under way is late as the link is now. */
  #isFeared(nowMs: number): boolean {
    const { deadlineMs } = this.#facts;
    const bytesPerMs = this.#underWay.speedAt(nowMs);
    if (deadlineMs === undefined || bytesPerMs === undefined) return false;
    return this.#underWay.queuedBytes / bytesPerMs > deadlineMs - nowMs;
  }

  /** The pull that would save most if it began anew at the densest level that the request allows. */
  #denser(nowMs: number): LoadAction | undefined {
    const { deadlineMs, budget, book } = this.#facts;
    if (deadlineMs === undefined || this.#source === undefined) return undefined;
    if (this.#underWay.speedAt(nowMs) === undefined) return undefined;
    const { profileId, levels } = book.levelsOf(this.#source);
    const densest = levels.reduce<CodecLevelFacts | undefined>(
      (best, level) => (level && isWithin(level.accuracy, budget) && level.ratio > (best?.ratio ?? 0) ? level : best),
      undefined,
    );
    const [worst] = [...this.#underWay.inOrder()].sort((a, b) => remainingBytes(b) - remainingBytes(a));
    if (worst === undefined || densest === undefined) return undefined;
    if (this.#wireBytes(worst, densest.ratio) > (1 - DENSER_SAVING) * remainingBytes(worst)) return undefined;
    const { name, accuracy, ratio } = densest;
    const level = { level: levels.indexOf(densest), name, isApproximate: accuracy !== "exact" };
    return this.#pull("pullDenser", { begin: worst.begin, end: worst.end }, { ...level, ratio }, profileId, nowMs);
  }

  #isOvertaken(nowMs: number): boolean {
    const { book, deadlineMs } = this.#facts;
    const source = this.#source;
    if (this.#underWay.count === 0 || source === undefined) return false;
    const msPerToken = this.#facts.computeMsPerToken();
    const chunks = this.#underWay
      .inOrder()
      .map((pull) => ({ remainingBytes: remainingBytes(pull), computeMs: (pull.end - pull.begin) * msPerToken }));
    const usualBytesPerMs = book.linkOf(source.peer)?.usual ?? Number.POSITIVE_INFINITY;
    const bytesPerMs = this.#underWay.speedAt(nowMs) ?? usualBytesPerMs;
    const leftMs = deadlineMs === undefined ? undefined : deadlineMs - nowMs;
    return overtaken(chunks, { bytesPerMs, usualBytesPerMs }, leftMs) > 0;
  }
}
