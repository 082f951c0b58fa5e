import { randomBytes } from "node:crypto";
import {
  addNanos,
  advanceDecodeHandover,
  type BlockId,
  type DecodeHandover,
  type DecodeHandoverEffect,
  type DecodeHandoverEvent,
  type ErrorFacts,
  type Instant,
  isDecodeHandoverOver,
  KvasirError,
  msFromNanos,
  nanosFromMs,
  newDecodeHandover,
  type SequenceId,
  type Token,
  unreachable,
} from "@kvasir/core";
import {
  CodecLevel,
  type FetchResponse,
  type RunFirstToken,
  type RunResponse,
  type RunTicket,
  type WorkerRef,
} from "@kvasir/proto";
import { errorFromService } from "@kvasir/rpc";
import { now } from "../clock.ts";
import type { FetchStream } from "../kernel/kernel.ts";
import { endSpan, metadataOf, startSpan, type Traced, traceparentOf } from "../tracing.ts";
import { Generation, type GenerationFacts } from "./generation.ts";
import type { PrefillPeers } from "./peers.ts";

/** Time for the prefill worker's ticket beyond its own wait for blocks. Larger: slower peers pass; smaller: dead ones are left sooner. */
const TICKET_WAIT_MS = 5_000;

export interface SplitFacts extends GenerationFacts {
  readonly prefill: WorkerRef;
  readonly peers: PrefillPeers;
}

/** Prompt elsewhere, output here: runs the effects of `advanceDecodeHandover`, and then the generation's steps. */
export class SplitGeneration {
  readonly #facts: SplitFacts;
  readonly #generation: Generation;
  readonly #transferId = randomBytes(16);
  readonly #leaseId: string;
  readonly #sequenceId: SequenceId;
  readonly #branchIds: readonly SequenceId[];
  #state: DecodeHandover;
  #timer: NodeJS.Timeout | undefined;
  #run: ReturnType<PrefillPeers["run"]> | undefined;
  #fetch: FetchStream | undefined;
  #ticket: RunTicket | undefined;
  #handover: Traced | undefined;
  #firstTokenAt: Instant | undefined;
  #firstChoiceEnded = false;

  constructor(facts: SplitFacts) {
    this.#facts = facts;
    this.#generation = new Generation(facts);
    this.#generation.prefillWorkerId = facts.prefill.workerId;
    this.#leaseId = `reservation ${this.#transferId.toString("hex")}`;
    const { incarnation, request, traced, arrivedAt, admissionWaitMs } = facts;
    const { promptTokenIds } = request;
    const { sampling } = this.#generation;
    const { outputTokenIds } = facts.choices[0];
    const waitUntil = addNanos(arrivedAt, nanosFromMs(admissionWaitMs));
    this.#state = newDecodeHandover(waitUntil);
    [this.#sequenceId, ...this.#branchIds] = incarnation.engine.submitGroup(
      {
        ...{ kind: "decode", promptTokenIds, outputTokenIds, sampling, maxTokens: sampling.maxTokens },
        traceparent: traceparentOf(traced),
        branches: this.#generation.branches(),
      },
      waitUntil,
      {
        admitted: () => this.#reserved(),
        refused: () => this.#apply({ kind: "TimePassed" }),
        fetchOpened: (blockIds) => this.#openFetch(blockIds),
        planned: () => this.#joined(),
        sampled: (token, _tokenIndex, end) => this.#generation.token(token, end),
        failed: (error) => this.#lost(error),
      },
    );
    this.#armTimer();
  }

  get done(): Promise<void> {
    return this.#generation.done;
  }

  /** The first answer began on another worker. */
  get #isResumed(): boolean {
    return this.#facts.choices[0].outputTokenIds.length > 0;
  }

  cancel(): void {
    if (isDecodeHandoverOver(this.#state)) {
      for (const id of [this.#sequenceId, ...this.#branchIds]) this.#facts.incarnation.engine.close(id);
      this.#generation.fail(new KvasirError({ reason: "cancelled", message: "the caller went away" }));
    } else this.#apply({ kind: "Cancelled" });
  }

  #apply(event: DecodeHandoverEvent): void {
    const { next, effects } = advanceDecodeHandover(this.#state, event, now());
    const isNowOver = isDecodeHandoverOver(next) && !isDecodeHandoverOver(this.#state);
    this.#state = next;
    if (isNowOver) this.#meterEnd(effects);
    for (const effect of effects) this.#perform(effect);
    this.#armTimer();
  }

  #meterEnd(effects: readonly DecodeHandoverEffect[]): void {
    const { requests } = this.#facts;
    const failure = effects.find((effect) => effect.kind === "EndStream")?.error;
    const outcome = failure?.reason ?? (this.#state.kind === "finished" ? "finished" : "joined");
    requests.handoverEnded("decode", outcome);
    if (this.#fetch === undefined) return;
    const { kvBytesMoved, timings } = this.#generation;
    requests.transferEnded(outcome, { bytes: Number(kvBytesMoved), seconds: (timings.kvTransferMs ?? 0) / 1_000 });
  }

  #perform(effect: DecodeHandoverEffect): void {
    const { incarnation } = this.#facts;
    switch (effect.kind) {
      case "RequestPrefill":
        this.#requestPrefill();
        break;
      case "OpenFetch":
        // Answered by `fetchOpened` with the blocks.
        incarnation.engine.apply({ kind: "KvOffered", sequenceId: this.#sequenceId });
        break;
      case "SendFirstToken":
        this.#sendFirstToken(effect.token, effect.final);
        break;
      case "Join":
        incarnation.engine.apply({
          kind: "KvArrived",
          sequenceId: this.#sequenceId,
          firstTokenId: effect.firstTokenId,
        });
        if (this.#firstChoiceEnded) {
          this.#joined();
          incarnation.engine.close(this.#sequenceId);
        }
        this.#run?.write({ kind: { case: "received", value: {} } });
        this.#run?.end();
        void this.#closeTransfer();
        break;
      case "AbandonTransfer":
        this.#run?.cancel();
        this.#fetch?.cancel();
        incarnation.engine.close(this.#sequenceId);
        void this.#closeTransfer();
        break;
      case "EndStream":
        this.#endStream(effect.error);
        break;
      default:
        unreachable(effect);
    }
  }

  #reserved(): void {
    const { incarnation, leaseMs, admissionWaitMs } = this.#facts;
    const instant = now();
    const lifetime = nanosFromMs(leaseMs + admissionWaitMs + TICKET_WAIT_MS);
    incarnation.leases.grant(this.#leaseId, "reservation", this.#sequenceId, lifetime, instant);
    this.#generation.accepted();
    const requestDeadline = addNanos(instant, nanosFromMs(admissionWaitMs + TICKET_WAIT_MS));
    this.#apply({ kind: "Reserved", requestDeadline });
  }

  #requestPrefill(): void {
    const { peers, prefill, request, requestId, incarnation, traced } = this.#facts;
    const run = peers.run(prefill.address, { metadata: metadataOf(traced) });
    this.#run = run;
    run.on("data", (response: RunResponse) => {
      if (response.kind.case === "ticket") this.#ticketReceived(response.kind.value);
      else if (response.kind.case === "firstToken") this.#firstTokenReceived(response.kind.value);
    });
    run.on("error", (error) => this.#failFrom(error, `prefill worker ${prefill.workerId}`));
    run.on("end", () => {
      // Before the join this is no good end; after it the event changes nothing.
      const message = `prefill worker ${prefill.workerId} ended the hand-over before its time; retry elsewhere`;
      this.#apply({ kind: "Failed", error: { reason: "unavailable", message, workerId: prefill.workerId } });
    });
    run.write({
      kind: {
        case: "start",
        value: {
          requestId,
          transferId: this.#transferId,
          promptTokenIds: request.promptTokenIds as number[],
          sampling: this.#generation.sampling,
          tenantScope: request.tenantScope,
          expectedEpoch: prefill.epoch,
          layoutFingerprint: incarnation.layout.fingerprint,
        },
      },
    });
  }

  #ticketReceived(value: RunTicket): void {
    const { incarnation } = this.#facts;
    const lifetime = nanosFromMs(Math.max(value.leaseMs, 1));
    const instant = now();
    incarnation.leases.extend(this.#leaseId, lifetime, instant);
    this.#ticket = value;
    this.#apply({ kind: "TicketReceived", leaseEnd: addNanos(instant, lifetime) });
  }

  #openFetch(blockIds: readonly BlockId[]): void {
    const { incarnation, request, traced } = this.#facts;
    const fetch = incarnation.kernel.fetch(
      {
        leaseId: this.#transferId,
        ...(this.#ticket?.ticket ? { ticket: this.#ticket.ticket } : {}),
        sourceAddress: this.#ticket?.sourceAddress ?? "",
        blockIds: [...blockIds],
        tokenBegin: 0,
        tokenEnd: request.promptTokenIds.length,
        tenantScope: request.tenantScope,
        level: CodecLevel.RAW,
      },
      metadataOf(traced),
    );
    this.#fetch = fetch;
    let complete = false;
    fetch.on("data", (progress: FetchResponse) => {
      complete = progress.complete;
      this.#generation.kvBytesMoved = progress.dataBytes;
      this.#generation.timings.kvTransferMs = msFromNanos(Number(progress.transferNanos));
      this.#apply({ kind: "FramesVerified", complete: progress.complete });
    });
    fetch.on("error", (error) => this.#failFrom(error, "the KV transfer"));
    fetch.on("end", () => {
      if (complete) return;
      const message = "the KV transfer ended before its last block; retry elsewhere";
      const { workerId } = this.#facts.prefill;
      this.#apply({ kind: "Failed", error: { reason: "unavailable", message, workerId } });
    });
  }

  #firstTokenReceived(value: RunFirstToken): void {
    const { timings } = this.#generation;
    timings.prefillQueueMs = value.queueMs;
    timings.prefillComputeMs = value.computeMs;
    if (!value.token) {
      const message = "the prefill worker sent a first token without a token";
      this.#apply({ kind: "Failed", error: { reason: "internal", message } });
      return;
    }
    // The prompt's KV is still wanted where there are more answers than this one.
    const isNews = !this.#isResumed;
    this.#firstChoiceEnded = isNews && value.stopped && this.#branchIds.length > 0;
    const stopped = isNews && value.stopped && !this.#firstChoiceEnded;
    this.#apply({ kind: "FirstTokenReceived", token: value.token, stopped });
  }

  #sendFirstToken(token: Token, isOnlyEnd: boolean): void {
    const { request, tracer, traced } = this.#facts;
    this.#firstTokenAt = now();
    if (this.#isResumed) {
      // The client has had it from a worker before.
      this.#handover = startSpan(tracer, "handover", traced.context);
      return;
    }
    const final = isOnlyEnd || this.#firstChoiceEnded;
    const isStop = final && request.sampling.stopTokenIds.includes(token.tokenId);
    this.#generation.token(token, isStop ? "stop" : final ? "length" : undefined);
    if (!isOnlyEnd) this.#handover = startSpan(tracer, "handover", traced.context);
  }

  /** Its first own step is on its way. */
  #joined(): void {
    const handoverMs = msFromNanos(now() - (this.#firstTokenAt ?? now()));
    this.#generation.timings.handoverMs = handoverMs;
    this.#facts.requests.handedOver(handoverMs / 1_000);
    if (this.#handover) endSpan(this.#handover.span);
    this.#handover = undefined;
    this.#generation.stepsBegin();
  }

  /** Blocks return only after the sidecar promised that no fetch writes them. */
  async #closeTransfer(): Promise<void> {
    const { engine, kernel, leases } = this.#facts.incarnation;
    leases.release(this.#leaseId);
    if (this.#fetch) await kernel.fence(this.#transferId);
    engine.apply({ kind: "TransferClosed", sequenceId: this.#sequenceId });
  }

  #failFrom(error: unknown, where: string): void {
    const known = errorFromService(error);
    // A peer that cancels on its own, or that is too slow, is a peer that is lost: only our own caller can cancel, and its deadline ends this call.
    const isLost = known.reason === "cancelled" || known.reason === "deadline_exceeded";
    const reason = isLost ? "unavailable" : known.reason;
    const { retryAfterMs, field } = known;
    const { workerId } = this.#facts.prefill;
    this.#apply({
      kind: "Failed",
      error: { reason, message: `${where}: ${known.message}`, retryAfterMs, field, workerId, cause: error },
    });
  }

  #lost(error: KvasirError): void {
    if (isDecodeHandoverOver(this.#state)) this.#generation.fail(error);
    else this.#apply({ kind: "Failed", error });
  }

  #endStream(error: ErrorFacts | undefined): void {
    if (!error) return;
    const thrown = error instanceof KvasirError ? error : new KvasirError(error);
    if (this.#handover) endSpan(this.#handover.span, thrown);
    this.#handover = undefined;
    this.#generation.fail(thrown);
  }

  #armTimer(): void {
    clearTimeout(this.#timer);
    if (isDecodeHandoverOver(this.#state)) return;
    const delayMs = Math.max(0, Math.ceil(msFromNanos(this.#state.deadline - now())));
    this.#timer = setTimeout(() => this.#apply({ kind: "TimePassed" }), delayMs);
  }
}
