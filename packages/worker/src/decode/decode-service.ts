import { KvasirError, sharedBlockCount, worstCaseBlockCount } from "@kvasir/core";
import { type DecodeService, type GenerateRequest, PlacementMode, type WorkerRef } from "@kvasir/proto";
import { contextFromMetadata, type Implementation } from "@kvasir/rpc";
import type { Tracer } from "@opentelemetry/api";
import { now } from "../clock.ts";
import type { Lenders } from "../fetch/borrow.ts";
import type { Incarnation } from "../incarnation.ts";
import { invalid } from "../invalid.ts";
import type { LocalPrefillCause } from "../metrics.ts";
import { checkEpoch, checkQueue, checkRequest, openChoices, tooLarge } from "../request-check.ts";
import type { RequestMeter } from "../request-meter.ts";
import { endSpan, startSpan, type Traced } from "../tracing.ts";
import type { LeaseRenewals } from "./lease-renewals.ts";
import { generateLocally } from "./local-generation.ts";
import type { PrefillPeers } from "./peers.ts";
import { type PrefillChoice, SplitGeneration } from "./split-generation.ts";
import type { GenerateCall } from "./token-stream.ts";

const TRANSFER_ID_BYTES = 16;

export interface DecodeServiceOptions {
  readonly workerId: string;
  readonly current: () => Incarnation | undefined;
  /** The highest fencing token that a router has led with; 0 before the first. */
  readonly leaderToken: () => bigint;
  readonly tracer: Tracer;
  readonly peers: PrefillPeers;
  readonly lenders: Lenders;
  readonly renewals: LeaseRenewals;
  readonly leaseMs: number;
  readonly admissionWaitMs: number;
  /** Tells of each generation's start and end. */
  readonly onGeneration: (change: 1 | -1) => void;
  /** A prompt, or the rest of one, is computed here that a prefill worker should have computed. */
  readonly requests: RequestMeter;
  readonly onLocalPrefill: (cause: LocalPrefillCause) => void;
}

/** `DecodeService`: one generation for each call. */
export function decodeService(options: DecodeServiceOptions): Implementation<typeof DecodeService> {
  return {
    async generate(request, call) {
      const traced = startSpan(options.tracer, "decode.generate", contextFromMetadata(call.metadata), {
        "kvasir.worker_id": options.workerId,
        "kvasir.request_id": request.requestId,
        "kvasir.prompt_tokens": request.promptTokenIds.length,
      });
      options.onGeneration(1);
      try {
        await generate(options, request, call, traced);
        endSpan(traced.span);
      } catch (error) {
        endSpan(traced.span, error instanceof Error ? error : undefined);
        throw error;
      } finally {
        options.onGeneration(-1);
      }
    },
  };
}

async function generate(
  options: DecodeServiceOptions,
  request: GenerateRequest,
  call: GenerateCall,
  traced: Traced,
): Promise<void> {
  const { placement } = request;
  if (placement?.decode === undefined) throw invalid("placement", "placement.decode is missing");
  const incarnation = checkEpoch(options.current(), placement.decode.epoch);
  if (placement.decode.workerId !== options.workerId) {
    const message = `the placement names decode worker ${placement.decode.workerId}, this is ${options.workerId}`;
    throw new KvasirError({ reason: "stale_epoch", message });
  }
  checkLeader(placement.leaderToken, options.leaderToken());
  checkQueue(incarnation);
  const checked = checkRequest(request, incarnation);
  const promptTokenCount = checked.promptTokenIds.length;
  const { blockSize } = incarnation.layout;
  const { vocabSize } = incarnation.description;
  const choices = openChoices(request, checked.sampling.maxTokens, vocabSize);
  const resumedTokenCount = choices.reduce((sum, choice) => sum + choice.outputTokenIds.length, 0);
  if (resumedTokenCount > 0) {
    traced.span.setAttribute("kvasir.resumed_tokens", resumedTokenCount);
    options.requests.recomputed(resumedTokenCount + (request.adoptsTransfer ? 0 : promptTokenCount));
  }
  const own = worstCaseBlockCount("decode", promptTokenCount, checked.sampling.maxTokens, blockSize);
  const blockCount = own + (choices.length - 1) * (own - sharedBlockCount(promptTokenCount, blockSize));
  if (blockCount > incarnation.description.blockCount) throw tooLarge(incarnation);
  const { sequenceCountMax } = incarnation.engine.scheduler.options;
  if (choices.length > sequenceCountMax) {
    throw invalid("choice_count", `choice_count is ${choices.length}; this worker runs ${sequenceCountMax} sequences`);
  }
  if (checked.sampling.constraint) await incarnation.kernel.prepareConstraint(checked.sampling.constraint);
  const { workerId, tracer, admissionWaitMs, leaseMs, peers, requests } = options;
  const facts = {
    call,
    incarnation,
    request: checked,
    choices,
    tellsChoices: request.choiceCount > 1,
    blockCount,
    requestId: request.requestId,
    workerId,
    arrivedAt: now(),
    admissionWaitMs,
    leaseMs,
    tracer,
    traced,
    requests,
  };
  switch (placement.mode) {
    case PlacementMode.AGGREGATED: {
      if (placement.localPrefill) {
        options.onLocalPrefill("no_prefill_worker");
        traced.span.setAttribute("kvasir.local_prefill", "no_prefill_worker");
      }
      return untilDone(call, generateLocally({ ...facts, lenders: options.lenders, fetch: placement.fetch }));
    }
    case PlacementMode.SPLIT: {
      const { prefill } = placement;
      if (prefill === undefined || prefill.address === "")
        throw invalid("placement.prefill", "placement.prefill is missing");
      const { renewals, onLocalPrefill } = options;
      const prefills = prefillChoices(request, { prefill, fetch: placement.fetch }, placement.otherPrefills);
      const { tbtTargetMs } = request;
      const kv = { accuracy: checked.kvAccuracy, tbtTargetMs, predictedTtftMs: placement.predictedTtftMs };
      return untilDone(call, new SplitGeneration({ ...facts, kv, prefills, peers, renewals, onLocalPrefill }));
    }
    default:
      throw invalid("placement.mode", `placement.mode is ${placement.mode}; use aggregated or split`);
  }
}

/** A placement by a router that has been followed by another is not what the new one counts with. One without a token was made by nobody. */
function checkLeader(token: bigint, highest: bigint): void {
  if (token === 0n || token >= highest) return;
  const message = `the placement is by leader ${token}, and ${highest} leads; have it placed again`;
  throw new KvasirError({ reason: "stale_epoch", message, workerId: "router" });
}

/** What a lost decode worker left is asked for once; whoever does not have it any more begins anew. */
function prefillChoices(
  { transferId, adoptsTransfer }: GenerateRequest,
  planned: Pick<PrefillChoice, "prefill" | "fetch">,
  others: readonly WorkerRef[],
): readonly [PrefillChoice, ...PrefillChoice[]] {
  if (transferId.length !== 0 && transferId.length !== TRANSFER_ID_BYTES) {
    throw invalid("transfer_id", `transfer_id has ${transferId.length} bytes, must have ${TRANSFER_ID_BYTES}`);
  }
  const first = transferId.length === 0 ? planned : { ...planned, transferId };
  return [first, ...(adoptsTransfer ? [planned] : []), ...others.map((other) => ({ prefill: other }))];
}

/** Waits for the end; a caller that goes away, or whose deadline passes, cancels. */
async function untilDone(
  call: GenerateCall,
  generation: { readonly done: Promise<void>; cancel(): void },
): Promise<void> {
  const cancel = () => generation.cancel();
  call.once("cancelled", cancel);
  if (call.cancelled) cancel();
  try {
    await generation.done;
  } finally {
    call.off("cancelled", cancel);
  }
}
