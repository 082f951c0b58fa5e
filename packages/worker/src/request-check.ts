import { create } from "@bufbuild/protobuf";
import {
  addNanos,
  clipMaxTokens,
  type Instant,
  type KvAccuracy,
  KvasirError,
  nanosFromMs,
  type SequenceSpec,
  unreachable,
} from "@kvasir/core";
import {
  type GenerateRequest,
  type SamplingParams,
  SamplingParamsSchema,
  KvAccuracy as WireAccuracy,
} from "@kvasir/proto";
import { now } from "./clock.ts";
import type { Incarnation } from "./incarnation.ts";
import { invalid } from "./invalid.ts";
import { checkSampling } from "./sampling-check.ts";

const TENANT_SCOPE_BYTES = 16;

export interface CheckedRequest {
  readonly promptTokenIds: readonly number[];
  /** With `maxTokens` cut at the context's end. */
  readonly sampling: SamplingParams;
  readonly tenantScope: Uint8Array;
  /** Least exact KV that will do where it travels for this request. */
  readonly kvAccuracy: KvAccuracy;
  /** When its first token is wanted; undefined: as soon as possible. */
  readonly firstTokenBy: Instant | undefined;
  /** What it may take from the prefix cache and leave there. */
  readonly reuse: Pick<SequenceSpec, "prefixRoot" | "scope" | "computesWholePrompt">;
}

/** Checks what a gateway or a decode worker sent, as far as the engine relies on it; throws INVALID_REQUEST naming the field. */
export function checkRequest(
  request: {
    readonly promptTokenIds: readonly number[];
    readonly sampling?: SamplingParams | undefined;
    readonly tenantScope: Uint8Array;
    readonly requestId: string;
    readonly kvAccuracy: WireAccuracy;
    readonly ttftTargetMs: number;
  },
  incarnation: Incarnation,
): CheckedRequest {
  const { promptTokenIds, sampling, tenantScope } = request;
  const { contextLength, vocabSize } = incarnation.description;
  if (promptTokenIds.length === 0)
    throw invalid("prompt_token_ids", "prompt_token_ids is empty; send at least one token");
  const foreign = promptTokenIds.find((tokenId) => tokenId >= vocabSize);
  if (foreign !== undefined) {
    throw invalid("prompt_token_ids", `prompt_token_ids has ${foreign}, the vocabulary ends at ${vocabSize - 1}`);
  }
  if (tenantScope.length !== TENANT_SCOPE_BYTES) {
    throw invalid("tenant_scope", `tenant_scope has ${tenantScope.length} bytes, must have ${TENANT_SCOPE_BYTES}`);
  }
  if (sampling === undefined) throw invalid("sampling", "sampling is missing");
  checkSampling(sampling, vocabSize);
  const maxTokens = clipMaxTokens(promptTokenIds.length, sampling.maxTokens, contextLength);
  if (maxTokens < 1) {
    const length = promptTokenIds.length;
    throw invalid(
      "prompt_token_ids",
      `the prompt has ${length} tokens, the context ${contextLength}: no room for an answer`,
    );
  }
  const prefixRoot = incarnation.prefixRootOf(tenantScope);
  const reuse = {
    ...(prefixRoot === undefined ? {} : { prefixRoot, scope: { tenantScope, requestId: request.requestId } }),
    // Log-probabilities of the prompt come from computing it.
    computesWholePrompt: sampling.promptLogprobs !== undefined,
  };
  return {
    ...{ promptTokenIds, tenantScope, reuse },
    sampling: create(SamplingParamsSchema, { ...sampling, maxTokens }),
    kvAccuracy: accuracyFromWire(request.kvAccuracy),
    firstTokenBy: request.ttftTargetMs > 0 ? addNanos(now(), nanosFromMs(request.ttftTargetMs)) : undefined,
  };
}

/** One answer that is still wanted. */
export interface OpenChoice {
  readonly index: number;
  /** What the client has of it. */
  readonly outputTokenIds: readonly number[];
}

/** The answers of a request that are still wanted, at least one, by index. */
export function openChoices(
  { choiceCount, resumed }: Pick<GenerateRequest, "choiceCount" | "resumed">,
  maxTokens: number,
  vocabSize: number,
): readonly [OpenChoice, ...OpenChoice[]] {
  const known = new Map(resumed.map((choice) => [choice.choiceIndex, choice]));
  const count = Math.max(1, choiceCount);
  const stray = resumed.find(({ choiceIndex }) => choiceIndex >= count);
  if (stray !== undefined || known.size !== resumed.length) {
    const indexes = resumed.map(({ choiceIndex }) => choiceIndex).join(", ");
    throw invalid("resumed", `resumed names answers ${indexes} of ${count}; name each at most once`);
  }
  const [first, ...others] = Array.from({ length: count }, (_, index) => index)
    .filter((index) => known.get(index)?.ended !== true)
    .map((index) => ({ index, outputTokenIds: known.get(index)?.tokenIds ?? [] }));
  if (first === undefined) throw invalid("resumed", "every answer has ended; nothing is left to generate");
  for (const { index, outputTokenIds } of [first, ...others]) {
    if (outputTokenIds.length >= maxTokens) {
      throw invalid("resumed", `answer ${index} has ${outputTokenIds.length} tokens, max_tokens is ${maxTokens}`);
    }
    if (outputTokenIds.some((tokenId) => tokenId >= vocabSize)) {
      throw invalid("resumed", `answer ${index} has tokens beyond the vocabulary's ${vocabSize}`);
    }
  }
  return [first, ...others];
}

/** A request that even an empty pool could not hold. */
export function tooLarge(incarnation: Incarnation): KvasirError {
  const { blockCount, layout } = incarnation.description;
  const tokens = blockCount * (layout?.blockSize ?? 0);
  return invalid("max_tokens", `prompt and max_tokens need more than the ${tokens} tokens of KV that this worker has`);
}

/** Refuses at once what would wait behind too many others. */
export function checkQueue(incarnation: Incarnation): void {
  if (!incarnation.isQueueFull) return;
  const count = incarnation.engine.scheduler.waitingCount;
  const message = `${count} requests wait for blocks already; retry later or elsewhere`;
  throw new KvasirError({ reason: "overloaded", message, retryAfterMs: 1_000 });
}

/** The incarnation that the caller was sent to, or the reason why not. */
export function checkEpoch(current: Incarnation | undefined, expectedEpoch: bigint): Incarnation {
  if (current === undefined) {
    const message = "the sidecar is not running yet; retry elsewhere";
    throw new KvasirError({ reason: "unavailable", message, retryAfterMs: 1_000 });
  }
  if (expectedEpoch !== current.epoch) {
    const message = `the placement names epoch ${expectedEpoch}, this is epoch ${current.epoch}; ask for a new placement`;
    throw new KvasirError({ reason: "stale_epoch", message });
  }
  return current;
}

/** What KV that travels for a request may lose. */
function accuracyFromWire(wire: WireAccuracy): KvAccuracy {
  switch (wire) {
    case WireAccuracy.UNSPECIFIED:
    case WireAccuracy.EXACT:
      return "exact";
    case WireAccuracy.NEAR:
      return "near";
    case WireAccuracy.FAST:
      return "fast";
    default:
      return unreachable(wire);
  }
}

/** The same as it travels on. */
export function wireFromAccuracy(accuracy: KvAccuracy): WireAccuracy {
  return { exact: WireAccuracy.EXACT, near: WireAccuracy.NEAR, fast: WireAccuracy.FAST }[accuracy];
}
