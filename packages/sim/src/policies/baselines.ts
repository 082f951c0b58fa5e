import {
  decodeStepMs,
  type PlacementPolicy,
  type PlacementQuestion,
  type PolicyOutcome,
  prefillMs,
  type StepCost,
} from "@kvasir/core";
import { randomOf } from "../random.ts";
import { least, placedOn, type Standing, standingsOf } from "./standings.ts";

/** A rule for the worker that computes a prompt, and one for the worker that decodes. */
interface Rules {
  /** Lower is better; for the worker of both phases, or the prefill worker. */
  readonly prompt: (standing: Standing, all: readonly Standing[], question: PlacementQuestion) => number;
  /** For the decode worker of a split placement. */
  readonly decode: (standing: Standing) => number;
}

function policyOf(rules: Rules, seed = 7): PlacementPolicy {
  const random = randomOf(seed);
  return {
    choose(question): PolicyOutcome {
      const { mixed, prefills, decodes } = standingsOf(question);
      if (mixed.length > 0) {
        return placedOn(
          undefined,
          least(mixed, (standing) => rules.prompt(standing, mixed, question), random),
          question,
        );
      }
      const prefill = least(prefills, (standing) => rules.prompt(standing, prefills, question), random);
      const decode = prefill === undefined ? undefined : least(decodes, rules.decode, random);
      return placedOn(prefill, decode, question);
    },
  };
}

const queuedTokens = ({ load }: Standing): number => load.queuedPromptTokenCount;
const usedBlocks = ({ load, worker }: Standing): number => worker.facts.blockCount - load.freeBlockCount;
const running = ({ load }: Standing): number => load.sequenceCount;

export function randomPolicy(seed = 7): PlacementPolicy {
  return policyOf({ prompt: () => 0, decode: () => 0 }, seed);
}

export function roundRobinPolicy(): PlacementPolicy {
  let turn = 0;
  return {
    choose(question): PolicyOutcome {
      const { mixed, prefills, decodes } = standingsOf(question);
      turn++;
      if (mixed.length > 0) return placedOn(undefined, mixed[turn % mixed.length], question);
      return placedOn(
        prefills[turn % Math.max(1, prefills.length)],
        decodes[turn % Math.max(1, decodes.length)],
        question,
      );
    },
  };
}

/** Fewest requests, then fewest prompt tokens not computed: what a proxy without knowledge of caches does best. Sarathi-Serve's and DistServe's dispatch. */
export function leastLoadPolicy(): PlacementPolicy {
  return policyOf({ prompt: (standing) => queuedTokens(standing) + 1e-3 * running(standing), decode: running });
}

/**
 * SGLang's cache-aware router: the longest prefix where it is at least half of the prompt, else the emptiest cache; the least busy where the
 * fleet is out of balance (`balance_abs_threshold` 64, `balance_rel_threshold` 1.5, its defaults).
 */
export function prefixAffinityPolicy(): PlacementPolicy {
  return policyOf({
    prompt: (standing, all, { request }) => {
      const loads = all.map(({ load }) => load.sequenceCount);
      const high = Math.max(...loads);
      const low = Math.min(...loads);
      if (high - low > 64 && high > 1.5 * low) return running(standing);
      const longest = Math.max(...all.map(({ cachedTokenCount }) => cachedTokenCount));
      return longest >= request.promptTokenCount / 2 ? -standing.cachedTokenCount : usedBlocks(standing);
    },
    decode: running,
  });
}

/** llm-d's default profile: queue 2, KV utilisation 2, prefix 3, each score within 0 and 1, the highest sum wins. */
export function llmdPolicy(): PlacementPolicy {
  return policyOf({
    prompt: (standing, all, { request }) => {
      const queues = all.map(({ worker }) => worker.load?.waitingCount ?? 0);
      const high = Math.max(...queues);
      const low = Math.min(...queues);
      const queue = high === low ? 1 : (high - (standing.worker.load?.waitingCount ?? 0)) / (high - low);
      const kv = 1 - usedBlocks(standing) / standing.worker.facts.blockCount;
      const prefix = standing.cachedTokenCount / request.promptTokenCount;
      return -(2 * queue + 2 * kv + 3 * prefix);
    },
    decode: (standing) => usedBlocks(standing) / standing.worker.facts.blockCount,
  });
}

/**
 * Mooncake's conductor (FAST 2025, algorithm 1): the least predicted TTFT from queue and local prefix, decode by load, and 429 for what its own
 * prediction says is late. Without its copying of blocks between prefill nodes, which needs a store.
 */
export function mooncakePolicy(cost: StepCost, tokenBudget: number): PlacementPolicy {
  const random = randomOf(7);
  const ttftMs = ({ load, cachedTokenCount }: Standing, promptTokenCount: number) =>
    prefillMs(cost, Math.max(1, load.queuedPromptTokenCount), 0, tokenBudget) *
      (load.queuedPromptTokenCount > 0 ? 1 : 0) +
    prefillMs(cost, promptTokenCount, cachedTokenCount, tokenBudget);
  return {
    choose(question): PolicyOutcome {
      const { request } = question;
      const { mixed, prefills, decodes } = standingsOf(question);
      const sources = mixed.length > 0 ? mixed : prefills;
      const prefill = least(sources, (standing) => ttftMs(standing, request.promptTokenCount), random);
      const decode = mixed.length > 0 ? prefill : least(decodes, running, random);
      if (prefill === undefined || decode === undefined) return placedOn(undefined, undefined, question);
      const { ttftMs: ttftTarget = Number.POSITIVE_INFINITY, tbtMs: tbtTarget = Number.POSITIVE_INFINITY } =
        request.objectives ?? {};
      const contextTokenCount = (decode.worker.load?.contextTokenCount ?? 0) + request.promptTokenCount;
      const tbtMs = decodeStepMs(cost, running(decode) + 1, contextTokenCount);
      if (ttftMs(prefill, request.promptTokenCount) > ttftTarget || tbtMs > tbtTarget) {
        return { kind: "late", message: "the conductor predicts that a target is missed", retryAfterMs: 1_000 };
      }
      return placedOn(mixed.length > 0 ? undefined : prefill, decode, question);
    },
  };
}

/** Pending prompt tokens above which Splitwise calls a prompt machine long. */
const SPLITWISE_LONG = 8_192;

/**
 * Splitwise's cluster scheduler (ISCA 2024): the prompt machine with the fewest pending tokens, the token machine with the least memory in
 * use; a prompt whose machine is long goes to a machine of the other pool, which then does both (its mixed pool).
 */
export function splitwisePolicy(): PlacementPolicy {
  const random = randomOf(7);
  return {
    choose(question): PolicyOutcome {
      const { mixed, prefills, decodes } = standingsOf(question);
      if (mixed.length > 0) return placedOn(undefined, least(mixed, queuedTokens, random), question);
      const prefill = least(prefills, queuedTokens, random);
      const decode = least(decodes, usedBlocks, random);
      const isLong =
        prefill !== undefined &&
        queuedTokens(prefill) > 0 &&
        queuedTokens(prefill) + question.request.promptTokenCount > SPLITWISE_LONG;
      const borrowed = isLong ? least(decodes, queuedTokens, random) : undefined;
      if (borrowed !== undefined && queuedTokens(borrowed) < queuedTokens(prefill as Standing)) {
        return placedOn(undefined, borrowed, question);
      }
      return placedOn(prefill, prefill === undefined ? undefined : decode, question);
    },
  };
}
