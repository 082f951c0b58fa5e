import type { MessageInitShape } from "@bufbuild/protobuf";
import type { ServerDuplexStream } from "@grpc/grpc-js";
import {
  addNanos,
  advancePrefillHandover,
  type BlockId,
  type ErrorFacts,
  type Instant,
  isPrefillHandoverOver,
  KvasirError,
  msFromNanos,
  nanosFromMs,
  newPrefillHandover,
  type PrefillHandover,
  type PrefillHandoverEffect,
  type PrefillHandoverEvent,
  type SequenceId,
  type Token,
  unreachable,
} from "@kvasir/core";
import type { PrefixFetch as FetchPlan, RunRequest, RunResponseSchema, RunTicketSchema } from "@kvasir/proto";
import { errorFromService } from "@kvasir/rpc";
import type { Tracer } from "@opentelemetry/api";
import { now } from "../clock.ts";
import { beginFetch, NOTHING_FETCHED } from "../fetch/begin-fetch.ts";
import type { Lenders } from "../fetch/borrow.ts";
import type { PrefixFetch } from "../fetch/prefix-fetch.ts";
import type { Incarnation } from "../incarnation.ts";
import type { CheckedRequest } from "../request-check.ts";
import type { RequestMeter } from "../request-meter.ts";
import { signTicket } from "../ticket.ts";
import { endSpan, metadataOf, startQueueSpan, type Traced, traceparentOf } from "../tracing.ts";
import { wireToken } from "../wire-token.ts";

/** Longest life of a transfer, however alive its decode worker: as long as a request may take. */
const TRANSFER_MAX_MS = 600_000;

export type RunCall = ServerDuplexStream<RunRequest, MessageInitShape<typeof RunResponseSchema>>;
type RunMessage = MessageInitShape<typeof RunResponseSchema>;

export interface PrefillRunFacts {
  readonly incarnation: Incarnation;
  readonly workerId: string;
  /** 16 bytes: idempotency key, and the lease's id in the sidecar. */
  readonly transferId: Uint8Array;
  readonly request: CheckedRequest;
  readonly admissionWaitMs: number;
  readonly leaseMs: number;
  /** How long KV waits for another decode worker when its own is gone without a word. */
  readonly adoptionMs: number;
  readonly tracer: Tracer;
  readonly requests: RequestMeter;
  readonly requestId: string;
  readonly lenders: Lenders;
  /** What another worker or a store has cached, by the router's plan. */
  readonly fetch: FetchPlan | undefined;
  /** `prefill.run`; ended here. */
  readonly traced: Traced;
}

/**
 * One hand-over on the prefill side: runs the effects of `advancePrefillHandover`. A second call with the same transfer id takes the
 * hand-over over and is told again what was said; the first one ends as cancelled and no longer counts.
 */
export class PrefillRun {
  readonly #facts: PrefillRunFacts;
  readonly #leaseId: string;
  readonly #arrivedAt = now();
  readonly #said: RunMessage[] = [];
  readonly #queue: Traced;
  readonly #over = Promise.withResolvers<void>();
  #state: PrefillHandover;
  #sequenceId: SequenceId;
  #call: { readonly stream: RunCall; readonly done: PromiseWithResolvers<void> } | undefined;
  #publishing: Promise<unknown> | undefined;
  #plannedAt: Instant | undefined;
  #cachedTokenCount = 0;
  #fetched = NOTHING_FETCHED;
  #approximateTokenCount = 0;
  #fetch: PrefixFetch | undefined;
  #timer: NodeJS.Timeout | undefined;
  #blockIds: readonly BlockId[] = [];
  #ticket: MessageInitShape<typeof RunTicketSchema> = {};

  constructor(facts: PrefillRunFacts) {
    this.#facts = facts;
    this.#leaseId = `pin ${Buffer.from(facts.transferId).toString("hex")}`;
    const { incarnation, request, traced } = facts;
    const { promptTokenIds, sampling, reuse } = request;
    this.#queue = startQueueSpan(facts.tracer, traced, incarnation.engine);
    const waitUntil = addNanos(this.#arrivedAt, nanosFromMs(facts.admissionWaitMs));
    this.#state = newPrefillHandover(waitUntil);
    this.#sequenceId = incarnation.engine.submit(
      {
        ...{ kind: "prefill", promptTokenIds, sampling, maxTokens: sampling.maxTokens, reuse },
        traceparent: traceparentOf(traced),
      },
      waitUntil,
      {
        admitted: (blockIds, cachedTokenCount) => this.#admitted(blockIds, cachedTokenCount),
        refused: () => this.#apply({ kind: "TimePassed" }),
        planned: (cachedTokenCount) => {
          this.#plannedAt = now();
          this.#cachedTokenCount = cachedTokenCount;
          facts.requests.lookedUp({ promptTokenCount: promptTokenIds.length, cachedTokenCount });
          traced.span.setAttribute("kvasir.cached_tokens", cachedTokenCount);
          this.#queue.span.end();
          this.#apply({ kind: "StepPlanned" });
        },
        prompted: () => this.#fetch?.wake(),
        sampled: (token, _index, end) => {
          this.#fetch?.firstToken();
          this.#apply({ kind: "TokenSampled", token, stopped: end !== undefined });
        },
        failed: (error) => this.#apply({ kind: "Failed", error }),
      },
    );
    this.#armTimer();
  }

  /** Resolves when the hand-over is over, however it ended. */
  get over(): Promise<void> {
    return this.#over.promise;
  }

  get isOver(): boolean {
    return isPrefillHandoverOver(this.#state);
  }

  /** Serves the hand-over on a call; resolves or rejects as the call shall end. */
  serve(stream: RunCall): Promise<void> {
    const done = Promise.withResolvers<void>();
    const replaced = this.#call;
    this.#call = { stream, done };
    this.#apply({ kind: "PeerAdopted" });
    replaced?.done.reject(
      new KvasirError({ reason: "cancelled", message: "another call with this transfer_id took over" }),
    );
    for (const message of this.#said) stream.write(message);
    return done.promise;
  }

  /** The caller of `stream` said that every block is verified. */
  received(stream: RunCall): void {
    if (this.#call?.stream === stream) this.#apply({ kind: "PeerReceived" });
  }

  /** The caller of `stream` wants nothing more. */
  closed(stream: RunCall): void {
    if (this.#call?.stream === stream) this.#apply({ kind: "PeerClosed" });
  }

  /** The caller of `stream` is gone without a word. */
  lost(stream: RunCall): void {
    if (this.#call?.stream !== stream) return;
    const adoptBy = addNanos(now(), nanosFromMs(this.#facts.adoptionMs));
    this.#apply({ kind: "PeerLost", adoptBy });
  }

  /** A heartbeat of the decode worker. */
  renew(): void {
    const { incarnation, leaseMs } = this.#facts;
    const instant = now();
    const lifetime = nanosFromMs(leaseMs);
    if (!incarnation.leases.extend(this.#leaseId, lifetime, instant)) return;
    this.#apply({ kind: "LeaseRenewed", leaseEnd: addNanos(instant, lifetime) });
  }

  #admitted(blockIds: readonly BlockId[], cachedTokenCount: number): void {
    const { incarnation, leaseMs } = this.#facts;
    this.#cachedTokenCount = cachedTokenCount;
    const lease = incarnation.leases.grant(this.#leaseId, "pin", this.#sequenceId, nanosFromMs(leaseMs), now());
    this.#blockIds = blockIds;
    this.#apply({ kind: "BlocksTaken", leaseEnd: lease.expiresAt });
  }

  #apply(event: PrefillHandoverEvent): void {
    const { next, effects } = advancePrefillHandover(this.#state, event, now());
    this.#state = next;
    for (const effect of effects) this.#perform(effect);
    this.#armTimer();
  }

  #perform(effect: PrefillHandoverEffect): void {
    switch (effect.kind) {
      case "OpenExport":
        this.#openExport();
        break;
      case "SendTicket":
        this.#say({ kind: { case: "ticket", value: this.#ticket } });
        this.#compute();
        break;
      case "SendFirstToken":
        this.#sendFirstToken(effect.token, effect.stopped);
        break;
      case "FreeBlocks":
        void this.#freeBlocks();
        break;
      case "EndStream":
        this.#end(effect.error);
        break;
      default:
        unreachable(effect);
    }
  }

  #openExport(): void {
    const { incarnation, request, transferId, workerId, traced } = this.#facts;
    const tokenCount = request.promptTokenIds.length;
    // The lease is kept here, by heartbeats, and its end releases the export; this is the end that no heartbeat moves.
    const expiresAtUnixMs = BigInt(Date.now() + Math.max(TRANSFER_MAX_MS, this.#facts.leaseMs));
    const ticket = signTicket(
      {
        leaseId: transferId,
        sourceWorkerId: workerId,
        sourceEpoch: incarnation.epoch,
        tokenBegin: 0,
        tokenEnd: tokenCount,
        expiresAtUnixMs,
        layoutFingerprint: incarnation.layout.fingerprint,
        tenantScope: request.tenantScope,
      },
      incarnation.ticketKey,
    );
    this.#ticket = { ticket, source: incarnation.source, leaseMs: this.#facts.leaseMs };
    this.#publishing = incarnation.kernel
      .publish(
        {
          leaseId: transferId,
          sequenceId: BigInt(this.#sequenceId),
          tokenCount,
          blockIds: [...this.#blockIds],
          tenantScope: request.tenantScope,
          expiresAtUnixMs,
        },
        metadataOf(traced),
      )
      .then(
        () => this.#apply({ kind: "ExportOpened" }),
        (error: unknown) => this.#apply({ kind: "Failed", error: errorFromService(error) }),
      );
  }

  /** Fetches what the plan says and is still missing, and computes the rest. */
  #compute(): void {
    const { incarnation, fetch: plan, traced, requests, lenders, request } = this.#facts;
    const sequenceId = this.#sequenceId;
    this.#fetch = beginFetch(
      { incarnation, sequenceId, blockIds: this.#blockIds, cachedTokenCount: this.#cachedTokenCount },
      { plan, request, lenders, traced, requests },
      (fetched, approximateTokenCount) => {
        this.#fetched = fetched;
        this.#approximateTokenCount = approximateTokenCount;
      },
    );
    incarnation.engine.apply({ kind: "ExportOpened", sequenceId });
  }

  #sendFirstToken(token: Token, stopped: boolean): void {
    const sampledAt = now();
    const plannedAt = this.#plannedAt ?? sampledAt;
    const queueMs = msFromNanos(plannedAt - this.#arrivedAt);
    const computeMs = msFromNanos(sampledAt - plannedAt);
    this.#facts.requests.queued(queueMs / 1_000);
    this.#facts.requests.prefilled(computeMs / 1_000);
    this.#facts.traced.span.setAttributes({ "kvasir.queue_ms": queueMs, "kvasir.compute_ms": computeMs });
    const cached = { resident: this.#cachedTokenCount, ...this.#fetched };
    const approximatePromptTokens = this.#approximateTokenCount;
    const value = { token: wireToken(token), stopped, queueMs, computeMs, cached, approximatePromptTokens };
    this.#say({ kind: { case: "firstToken", value } });
  }

  /** Blocks return only after the sidecar promised that no pull reads them. */
  async #freeBlocks(): Promise<void> {
    const { incarnation, transferId } = this.#facts;
    const { engine, kernel, leases } = incarnation;
    engine.close(this.#sequenceId);
    leases.release(this.#leaseId);
    this.#fetch?.stop();
    if (this.#publishing) {
      await this.#publishing;
      await kernel.release(transferId);
    }
    engine.apply({ kind: "TransferClosed", sequenceId: this.#sequenceId });
  }

  #say(message: RunMessage): void {
    this.#said.push(message);
    this.#call?.stream.write(message);
  }

  #end(error: ErrorFacts | undefined): void {
    clearTimeout(this.#timer);
    const { span } = this.#facts.traced;
    const thrown = error && (error instanceof KvasirError ? error : new KvasirError(error));
    const end = this.#state.kind === "received" ? "received" : "closed";
    this.#facts.requests.handoverEnded("prefill", thrown?.reason ?? end);
    if (this.#queue.span.isRecording()) endSpan(this.#queue.span, thrown);
    span.setAttribute("kvasir.handover_end", this.#state.kind);
    endSpan(span, thrown);
    if (thrown) this.#call?.done.reject(thrown);
    else this.#call?.done.resolve();
    this.#over.resolve();
  }

  #armTimer(): void {
    clearTimeout(this.#timer);
    if (this.isOver) return;
    const delayMs = Math.max(0, Math.ceil(msFromNanos(this.#state.deadline - now())));
    this.#timer = setTimeout(() => this.#apply({ kind: "TimePassed" }), delayMs);
  }
}
