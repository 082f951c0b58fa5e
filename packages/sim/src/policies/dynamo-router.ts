import type {
  Candidate,
  PlacementPolicy,
  PlacementQuestion,
  PolicyOutcome,
  RequestKey,
  RequestShape,
} from "@kvasir/core";
import { randomOf } from "../random.ts";
import { least, placedOn, type Standing, standingsOf } from "./standings.ts";

/** Bytes of a block's hash. */
const HASH_BYTES = 16;

interface ActiveRequest {
  readonly prefillOn: string;
  readonly decodeOn: string;
  /** Uncached tokens; 0 once the first token is there. */
  prefillTokenCount: number;
  readonly blocks: readonly number[];
}

/** What Dynamo's router knows of one worker: only what it has sent there itself. */
interface ActiveLoad {
  prefillTokenCount: number;
  /** Holders of each block of the prompts that run there. */
  readonly blocks: Map<number, number>;
  /** The same, where a block of two requests counts twice. */
  blockSum: number;
}

/**
 * NVIDIA Dynamo's KV router with its defaults (lib/kv-router, version 1.6; overlap credit 1, prefill scale 1, temperature 0): the worker with the
 * least `max(0, (prefill tokens active there + prompt) / block − overlap) + blocks active there with this prompt`. Of a split cluster the
 * prefill router counts prompts alone and the decode router blocks alone, without overlap. Equal ones are drawn from. It never refuses.
 */
export class DynamoRouter implements PlacementPolicy {
  readonly #overlapCredit: number;
  readonly #random: () => number;
  readonly #requests = new Map<RequestKey, ActiveRequest>();
  readonly #workers = new Map<string, ActiveLoad>();

  constructor(overlapCredit = 1, seed = 7) {
    this.#overlapCredit = overlapCredit;
    this.#random = randomOf(seed);
  }

  choose(question: PlacementQuestion): PolicyOutcome {
    const { request } = question;
    const { mixed, prefills, decodes } = standingsOf(question);
    const blocks = blocksOf(request);
    if (mixed.length > 0) {
      const cost = (standing: Standing) => this.#prefillBlocks(standing, request) + this.#blocksWith(standing, blocks);
      return placedOn(undefined, least(mixed, cost, this.#random), question);
    }
    const prefill = least(prefills, (standing) => this.#prefillBlocks(standing, request), this.#random);
    const decode = least(decodes, ({ worker }) => this.#load(worker.incarnation).blockSum, this.#random);
    return placedOn(prefill, prefill === undefined ? undefined : decode, question);
  }

  placed(key: RequestKey, candidate: Candidate, request: RequestShape): void {
    const prefillOn = (candidate.prefill ?? candidate.decode).incarnation;
    const active: ActiveRequest = {
      prefillOn,
      decodeOn: candidate.decode.incarnation,
      prefillTokenCount: candidate.uncachedTokenCount,
      blocks: blocksOf(request),
    };
    this.#requests.set(key, active);
    this.#load(prefillOn).prefillTokenCount += active.prefillTokenCount;
    const decode = this.#load(active.decodeOn);
    decode.blockSum += active.blocks.length;
    for (const block of active.blocks) decode.blocks.set(block, (decode.blocks.get(block) ?? 0) + 1);
  }

  firstToken(key: RequestKey): void {
    const active = this.#requests.get(key);
    if (active === undefined) return;
    this.#load(active.prefillOn).prefillTokenCount -= active.prefillTokenCount;
    active.prefillTokenCount = 0;
  }

  ended(key: RequestKey): void {
    this.firstToken(key);
    const active = this.#requests.get(key);
    if (active === undefined) return;
    this.#requests.delete(key);
    const decode = this.#load(active.decodeOn);
    decode.blockSum -= active.blocks.length;
    for (const block of active.blocks) {
      const left = (decode.blocks.get(block) ?? 1) - 1;
      if (left > 0) decode.blocks.set(block, left);
      else decode.blocks.delete(block);
    }
  }

  #prefillBlocks({ worker, cachedTokenCount }: Standing, { promptTokenCount }: RequestShape): number {
    const { blockSize } = worker.facts;
    const tokens = this.#load(worker.incarnation).prefillTokenCount + promptTokenCount;
    return Math.max(0, (tokens - this.#overlapCredit * cachedTokenCount) / blockSize);
  }

  #blocksWith({ worker }: Standing, blocks: readonly number[]): number {
    const active = this.#load(worker.incarnation).blocks;
    let shared = 0;
    // Hashes are chained: what follows a block that is not there is not there either.
    while (shared < blocks.length && active.has(blocks[shared]!)) shared++;
    return active.size + blocks.length - shared;
  }

  #load(incarnation: string): ActiveLoad {
    const known = this.#workers.get(incarnation);
    if (known !== undefined) return known;
    const load = { prefillTokenCount: 0, blocks: new Map<number, number>(), blockSum: 0 };
    this.#workers.set(incarnation, load);
    return load;
  }
}

/** 53 bits of the hash of each full block of the prompt. */
function blocksOf({ promptHashes = [] }: RequestShape): number[] {
  const [first] = promptHashes;
  if (first === undefined) return [];
  const { buffer, byteOffset, length } = first.hashes;
  const view = new DataView(buffer, byteOffset, length);
  return Array.from({ length: length / HASH_BYTES }, (_, index) => {
    const at = index * HASH_BYTES;
    return view.getUint32(at) * 2 ** 21 + (view.getUint32(at + 4) >>> 11);
  });
}
