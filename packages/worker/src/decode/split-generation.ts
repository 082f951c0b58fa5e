import { randomBytes } from "node:crypto";
import {
  addNanos,
  advanceDecodeHandover,
  type BlockId,
  type DecodeHandover,
  type DecodeHandoverEffect,
  type DecodeHandoverEvent,
  type DecodeHandoverPlan,
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
import type { PrefixFetch, RunFirstToken, RunTicket, WorkerRef } from "@kvasir/proto";
import { errorFromService, isTyped } from "@kvasir/rpc";
import { now } from "../clock.ts";
import type { LocalPrefillCause } from "../metrics.ts";
import { wireFromAccuracy } from "../request-check.ts";
import { endSpan, metadataOf, startSpan, type Traced, traceparentOf } from "../tracing.ts";
import type { KvProgress } from "../transfer/kv-fetch.ts";
import { ApproximateTokens } from "./approximate-tokens.ts";
import { Generation, type GenerationFacts } from "./generation.ts";
import { type KvTerms, wishOf } from "./kv-terms.ts";
import type { LeaseRenewals } from "./lease-renewals.ts";
import type { PrefillPeers } from "./peers.ts";
import { Transfer } from "./transfer.ts";

/** Time for the prefill worker to say that it heard. Larger: busy peers pass; smaller: those behind a broken link are left sooner. */
const HEARD_WAIT_MS = 3_000;

/** Time for the prefill worker's ticket beyond its own wait for blocks. Larger: slower peers pass; smaller: dead ones are left sooner. */
const TICKET_WAIT_MS = 5_000;

/**
 * A rest of a prompt of at most this part of a step is computed by decode itself, when all before it was in its cache. Larger parts of a step
 * would make those who decode beside it wait; smaller ones would send more prompts through another worker.
 */
const HIT_TAIL_STEP_PARTS = 4;

/** Time for the own sidecar to end a copy. Its worker holds one that takes longer for lost. */
const FENCE_WAIT_MS = 5_000;

/** A prefill worker to ask. */
export interface PrefillChoice {
  readonly prefill: WorkerRef;
  /** 16 bytes; absent: a new one. */
  readonly transferId?: Uint8Array;
  /** What it should fetch from another one. */
  readonly fetch?: PrefixFetch | undefined;
}

export interface SplitFacts extends GenerationFacts {
  /** In the order in which they are asked. */
  readonly prefills: readonly [PrefillChoice, ...PrefillChoice[]];
  readonly kv: KvTerms;
  readonly peers: PrefillPeers;
  readonly renewals: LeaseRenewals;
  readonly onLocalPrefill: (cause: LocalPrefillCause) => void;
}

/** Prompt elsewhere, output here: runs the effects of `advanceDecodeHandover`, and then the generation's steps. */
export class SplitGeneration {
  readonly #facts: SplitFacts;
  readonly #generation: Generation;
  readonly #plan: DecodeHandoverPlan;
  readonly #approximate: ApproximateTokens;
  readonly #leaseId = `reservation ${randomBytes(16).toString("hex")}`;
  readonly #sequenceId: SequenceId;
  readonly #branchIds: readonly SequenceId[];
  #state: DecodeHandover;
  #timer: NodeJS.Timeout | undefined;
  #transfer: Transfer | undefined;
  #ticket: RunTicket | undefined;
  /** Once there are physical ones. */
  #blockIds: readonly BlockId[] | undefined;
  /** Bytes that came from prefill workers before this one. */
  #bytesBefore = 0n;
  /** Pulls begun; each but the first goes on where one before it broke. */
  #pullCount = 0;
  #handover: Traced | undefined;
  #firstTokenAt: Instant | undefined;
  /** After a local hit, until the first token: its first step. */
  #plannedAt: Instant | undefined;
  #firstChoiceEnded = false;

  constructor(facts: SplitFacts) {
    this.#facts = facts;
    this.#generation = new Generation(facts);
    this.#generation.prefillWorkerId = facts.prefills[0].prefill.workerId;
    const { incarnation, request, traced, arrivedAt, admissionWaitMs } = facts;
    const { promptTokenIds, reuse } = request;
    const { sampling } = this.#generation;
    const { outputTokenIds } = facts.choices[0];
    // A rest of one step: those who decode beside it wait once.
    const { tokenBudget: tailTokenMax, blockSize } = incarnation.engine.scheduler.options;
    const hitTailTokenMax = Math.max(blockSize, Math.floor(tailTokenMax / HIT_TAIL_STEP_PARTS));
    const fenceWithin = nanosFromMs(FENCE_WAIT_MS);
    this.#plan = { promptTokenCount: promptTokenIds.length, tailTokenMax, hitTailTokenMax, fenceWithin };
    this.#approximate = new ApproximateTokens(promptTokenIds.length, facts.kv.accuracy);
    const waitUntil = addNanos(arrivedAt, nanosFromMs(admissionWaitMs));
    this.#state = newDecodeHandover(waitUntil, facts.prefills.length);
    [this.#sequenceId, ...this.#branchIds] = incarnation.engine.submitGroup(
      {
        ...{ kind: "decode", promptTokenIds, outputTokenIds, sampling, maxTokens: sampling.maxTokens },
        traceparent: traceparentOf(traced),
        branches: this.#generation.branches(),
        reuse,
      },
      waitUntil,
      {
        admitted: (_blockIds, cachedTokenCount) => this.#reserved(cachedTokenCount),
        refused: () => this.#apply({ kind: "TimePassed" }),
        fetchOpened: (blockIds) => this.#blocksTaken(blockIds),
        planned: () => this.#joined(),
        sampled: (token, _tokenIndex, end) => {
          if (this.#state.kind === "localHit") this.#meterPrefill();
          this.#generation.token(token, end);
        },
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

  /** What is pulled is bit for bit what would have been computed here. */
  get #isExact(): boolean {
    const ours = this.#facts.incarnation.layout.exactFingerprint;
    const theirs = this.#ticket?.source?.layout?.exactFingerprint ?? new Uint8Array();
    return Buffer.compare(ours, theirs) === 0;
  }

  cancel(): void {
    if (isDecodeHandoverOver(this.#state)) {
      for (const id of [this.#sequenceId, ...this.#branchIds]) this.#facts.incarnation.engine.close(id);
      this.#generation.fail(new KvasirError({ reason: "cancelled", message: "the caller went away" }));
    } else this.#apply({ kind: "Cancelled" });
  }

  #apply(event: DecodeHandoverEvent): void {
    const { next, effects } = advanceDecodeHandover(this.#state, event, this.#plan, now());
    const isNowOver = isDecodeHandoverOver(next) && !isDecodeHandoverOver(this.#state);
    this.#state = next;
    if (isNowOver) this.#meterEnd(effects);
    for (const effect of effects) this.#perform(effect);
    this.#armTimer();
  }

  #meterEnd(effects: readonly DecodeHandoverEffect[]): void {
    const { requests } = this.#facts;
    const failure = effects.find((effect) => effect.kind === "EndStream")?.error;
    const { kind } = this.#state;
    const outcome =
      failure?.reason ?? (kind === "localHit" ? "local_hit" : kind === "finished" || kind === "tail" ? kind : "joined");
    requests.handoverEnded("decode", outcome);
    if (this.#blockIds === undefined) return;
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
        // The first time answered by `fetchOpened` with the blocks.
        if (this.#blockIds === undefined) incarnation.engine.apply({ kind: "KvOffered", sequenceId: this.#sequenceId });
        else this.#openFetch(this.#blockIds, effect.verifiedTokenCount);
        break;
      case "SendFirstToken":
        this.#sendFirstToken(effect.token, effect.final);
        break;
      case "Join":
        incarnation.engine.apply({
          kind: "KvArrived",
          sequenceId: this.#sequenceId,
          firstTokenId: effect.firstTokenId,
          isApproximate: this.#approximate.count > 0,
        });
        if (this.#firstChoiceEnded) {
          this.#joined();
          incarnation.engine.close(this.#sequenceId);
        }
        void this.#closeTransfer("received");
        break;
      case "StopTransfer":
        void this.#stopTransfer();
        break;
      case "ComputeTail":
        if (this.#state.kind === "localHit") this.#computeAfterHit(effect.verifiedTokenCount);
        else this.#computeTail(effect.verifiedTokenCount, effect.token);
        break;
      case "AbandonTransfer":
        incarnation.engine.close(this.#sequenceId);
        void this.#closeTransfer("abort");
        break;
      case "EndStream":
        this.#endStream(effect.error);
        break;
      default:
        unreachable(effect);
    }
  }

  #reserved(cachedTokenCount: number): void {
    const { incarnation } = this.#facts;
    const lifetime = nanosFromMs(this.#requestWaitMs());
    incarnation.leases.grant(this.#leaseId, "reservation", this.#sequenceId, lifetime, now());
    this.#generation.accepted();
    this.#facts.traced.span.setAttribute("kvasir.resident_tokens", cachedTokenCount);
    this.#apply({ kind: "Reserved", heardBy: this.#after(HEARD_WAIT_MS), cachedTokenCount });
    if (this.#state.kind === "requesting") this.#facts.requests.fetchSpared(cachedTokenCount);
  }

  #requestWaitMs(): number {
    const { leaseMs, admissionWaitMs } = this.#facts;
    return leaseMs + admissionWaitMs + TICKET_WAIT_MS;
  }

  #after(ms: number): Instant {
    return addNanos(now(), nanosFromMs(ms));
  }

  #requestPrefill(): void {
    const { prefills, peers, request, requestId, incarnation, traced } = this.#facts;
    const choice = prefills[prefills.length - this.#state.prefillsLeft - 1] ?? prefills[0];
    const { prefill, transferId = randomBytes(16) } = choice;
    incarnation.leases.extend(this.#leaseId, nanosFromMs(this.#requestWaitMs()), now());
    this.#generation.prefillWorkerId = prefill.workerId;
    const { layout } = incarnation;
    const { tenantScope } = request;
    const start = {
      requestId,
      promptTokenIds: request.promptTokenIds as number[],
      sampling: this.#generation.sampling,
      tenantScope,
      expectedEpoch: prefill.epoch,
      layoutFingerprint: layout.fingerprint,
      kvAccuracy: wireFromAccuracy(request.kvAccuracy),
      ttftTargetMs: request.firstTokenBy === undefined ? 0 : Math.max(1, msFromNanos(request.firstTokenBy - now())),
      ...(choice.fetch === undefined ? {} : { fetch: choice.fetch }),
    };
    const metadata = metadataOf(traced);
    this.#approximate.sourceAsked();
    this.#transfer = new Transfer(
      { peers, prefill, transferId, incarnation, metadata, start },
      {
        heard: () => {
          const ticketBy = this.#after(this.#facts.admissionWaitMs + TICKET_WAIT_MS);
          this.#apply({ kind: "RequestHeard", ticketBy });
        },
        ticket: (ticket) => this.#ticketReceived(ticket),
        firstToken: (token) => this.#firstTokenReceived(token),
        progress: (progress) => this.#progress(progress),
        fellBack: (error) => this.#fellBack(error),
        broken: (error, where) => this.#peerLost(error, where),
      },
    );
  }

  #ticketReceived(value: RunTicket): void {
    const { renewals } = this.#facts;
    const { prefill, transferId } = this.#transfer?.facts ?? {};
    if (prefill === undefined || transferId === undefined) return;
    const leaseMs = Math.max(value.leaseMs, 1);
    this.#ticket = value;
    renewals.add(prefill.address, leaseMs, {
      transferId,
      renewed: (leaseEnd) => this.#renewed(leaseEnd),
      lost: () =>
        this.#peerLost(new KvasirError({ reason: "lease_expired", message: "the lease is over" }), "the heartbeat"),
    });
    const leaseEnd = addNanos(now(), nanosFromMs(leaseMs));
    this.#extendReservation(leaseEnd);
    this.#apply({ kind: "TicketReceived", leaseEnd });
  }

  #renewed(leaseEnd: Instant): void {
    this.#extendReservation(leaseEnd);
    this.#generation.moved();
    this.#apply({ kind: "LeaseRenewed", leaseEnd });
  }

  /** Our own reservation lives as long as the lease that it waits for. */
  #extendReservation(leaseEnd: Instant): void {
    const instant = now();
    const lifetime = nanosFromMs(Math.max(1, msFromNanos(leaseEnd - instant)));
    this.#facts.incarnation.leases.extend(this.#leaseId, lifetime, instant);
  }

  #blocksTaken(blockIds: readonly BlockId[]): void {
    this.#blockIds = blockIds;
    this.#openFetch(blockIds, this.#state.verifiedTokenCount);
  }

  #openFetch(blockIds: readonly BlockId[], verifiedTokenCount: number): void {
    const { blockSize } = this.#facts.incarnation.layout;
    // The block that is there in part comes again, whole.
    const tokenBegin = verifiedTokenCount - (verifiedTokenCount % blockSize);
    if (!this.#ticket || !this.#transfer) return;
    const waitedMs = msFromNanos(now() - this.#facts.arrivedAt);
    this.#transfer.fetch(this.#ticket, blockIds, tokenBegin, wishOf(this.#facts.kv, waitedMs));
    this.#approximate.pullBegins(tokenBegin);
    this.#pullCount++;
    this.#facts.traced.span.setAttribute("kvasir.pull_retries", this.#pullCount - 1);
  }

  #fellBack(error: KvasirError): void {
    this.#facts.requests.codecFellBack();
    this.#facts.traced.span.addEvent("codec fell back", { "kvasir.reason": error.message });
  }

  #progress(progress: KvProgress): void {
    const { verifiedTokenEnd, dataBytes, transferNanos, complete, approximateTokenCount, levels } = progress;
    this.#generation.kvBytesMoved = this.#bytesBefore + dataBytes;
    this.#generation.timings.kvTransferMs = msFromNanos(Number(transferNanos));
    const verifiedTokenCount = complete ? this.#plan.promptTokenCount : verifiedTokenEnd;
    this.#approximate.pulled(verifiedTokenCount, approximateTokenCount, !this.#isExact);
    this.#tellApproximate();
    if (complete) this.#facts.requests.kvTravelled(levels);
    const progressBy = addNanos(now(), nanosFromMs(Math.max(this.#ticket?.leaseMs ?? 1, 1)));
    this.#extendReservation(progressBy);
    this.#generation.moved();
    this.#apply({ kind: "FramesVerified", verifiedTokenCount, progressBy });
  }

  #firstTokenReceived(value: RunFirstToken): void {
    const { timings } = this.#generation;
    timings.prefillQueueMs = value.queueMs;
    timings.prefillComputeMs = value.computeMs;
    if (value.cached) this.#generation.cached(value.cached);
    this.#approximate.sourceTold(value.approximatePromptTokens);
    this.#tellApproximate();
    if (!value.token) {
      const message = "the prefill worker sent a first token without a token";
      this.#apply({ kind: "Failed", error: { reason: "internal", message } });
      return;
    }
    // The prompt's KV is still wanted where there are more answers than this one.
    const isNews = !this.#isResumed && this.#state.token === undefined;
    if (isNews) this.#firstChoiceEnded = value.stopped && this.#branchIds.length > 0;
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
    if (this.#state.kind === "localHit") {
      this.#plannedAt = now();
      this.#generation.timings.prefillQueueMs = msFromNanos(this.#plannedAt - this.#facts.arrivedAt);
      this.#generation.stepsBegin();
      return;
    }
    const handoverMs = msFromNanos(now() - (this.#firstTokenAt ?? now()));
    this.#generation.timings.handoverMs = handoverMs;
    this.#facts.requests.handedOver(handoverMs / 1_000);
    if (this.#handover) endSpan(this.#handover.span);
    this.#handover = undefined;
    this.#generation.stepsBegin();
  }

  /** The prefill worker is lost: what is verified stays, once nothing writes. */
  async #stopTransfer(): Promise<void> {
    this.#bytesBefore = this.#generation.kvBytesMoved;
    this.#approximate.sourceLost(this.#state.verifiedTokenCount);
    this.#tellApproximate();
    await this.#endTransfer("abort");
    this.#apply({ kind: "Fenced", heardBy: this.#after(HEARD_WAIT_MS) });
  }

  /** Nearly all of the prompt was here: no prefill worker is asked. */
  #computeAfterHit(cachedTokenCount: number): void {
    const { incarnation, onLocalPrefill, requests, traced, workerId } = this.#facts;
    const { promptTokenCount } = this.#plan;
    const resident = Math.min(cachedTokenCount, promptTokenCount);
    onLocalPrefill("prefix_hit");
    requests.lookedUp({ promptTokenCount, cachedTokenCount: resident });
    traced.span.setAttribute("kvasir.local_prefill", "prefix_hit");
    this.#generation.prefillWorkerId = workerId;
    this.#generation.cached({ resident });
    incarnation.leases.release(this.#leaseId);
    incarnation.engine.apply({ kind: "KvLost", sequenceId: this.#sequenceId, verifiedTokenCount: cachedTokenCount });
  }

  /** After a local hit, the rest of the prompt is computed with the first token. */
  #meterPrefill(): void {
    if (this.#plannedAt === undefined) return;
    const computeMs = msFromNanos(now() - this.#plannedAt);
    this.#plannedAt = undefined;
    this.#generation.timings.prefillComputeMs = computeMs;
    this.#facts.requests.prefilled(computeMs / 1_000);
  }

  #computeTail(verifiedTokenCount: number, token: Token | undefined): void {
    const { incarnation, onLocalPrefill, requests, traced, workerId } = this.#facts;
    const { engine, leases } = incarnation;
    requests.recomputed(this.#plan.promptTokenCount - verifiedTokenCount);
    onLocalPrefill("prefill_lost");
    traced.span.setAttributes({ "kvasir.local_prefill": "prefill_lost", "kvasir.kept_tokens": verifiedTokenCount });
    this.#generation.prefillWorkerId = workerId;
    leases.release(this.#leaseId);
    engine.apply({ kind: "TransferClosed", sequenceId: this.#sequenceId });
    const firstTokenId = this.#isResumed ? undefined : token?.tokenId;
    const isApproximate = this.#approximate.count > 0;
    const sequenceId = this.#sequenceId;
    engine.apply({ kind: "KvLost", sequenceId, verifiedTokenCount, firstTokenId, isApproximate });
  }

  /** Blocks return only after the sidecar promised that no fetch writes them. */
  async #closeTransfer(how: "received" | "abort"): Promise<void> {
    const { engine, leases } = this.#facts.incarnation;
    leases.release(this.#leaseId);
    await this.#endTransfer(how);
    engine.apply({ kind: "TransferClosed", sequenceId: this.#sequenceId });
  }

  async #endTransfer(how: "received" | "abort"): Promise<void> {
    const transfer = this.#transfer;
    if (transfer === undefined) return;
    this.#facts.renewals.remove(transfer.facts.prefill.address, transfer.facts.transferId);
    await transfer[how]();
  }

  #peerLost(cause: unknown, where: string): void {
    const known = errorFromService(cause);
    // A peer that cancels on its own, breaks off or is too slow is a peer that is lost: our own caller's cancel comes another way.
    const isBroken = known.reason === "internal" && !isTyped(cause);
    const isLost = isBroken || known.reason === "cancelled" || known.reason === "deadline_exceeded";
    const reason = isLost ? "unavailable" : known.reason;
    const { retryAfterMs, field } = known;
    const { workerId = "" } = this.#transfer?.facts.prefill ?? {};
    const error = { reason, message: `${where}: ${known.message}`, retryAfterMs, field, workerId, cause: known };
    // An answer that has ended already cannot compute the prompt for its siblings.
    this.#apply({ kind: this.#firstChoiceEnded ? "Failed" : "PeerLost", error });
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

  #tellApproximate(): void {
    this.#generation.approximateTokenCount = this.#approximate.count;
  }

  #armTimer(): void {
    clearTimeout(this.#timer);
    if (isDecodeHandoverOver(this.#state)) return;
    const delayMs = Math.max(0, Math.ceil(msFromNanos(this.#state.deadline - now())));
    this.#timer = setTimeout(() => this.#apply({ kind: "TimePassed" }), delayMs);
  }
}
