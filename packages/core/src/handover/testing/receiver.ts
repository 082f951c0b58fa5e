import { assert } from "../../assert.ts";
import type { ErrorFacts } from "../../kvasir-error.ts";
import type { Instant, Nanos } from "../../time.ts";
import {
  advanceDecodeHandover,
  type DecodeHandover,
  type DecodeHandoverEffect,
  type DecodeHandoverEvent,
  type DecodeHandoverPlan,
  isDecodeHandoverOver,
  newDecodeHandover,
} from "../decode-handover.ts";
import type { Run, Source } from "./source.ts";
import { FIRST_TOKEN, type Said, TIMES, type World } from "./world.ts";

const LOST: ErrorFacts = { reason: "unavailable", message: "the peer is lost" };

/** A copy of one token's KV, which takes time at both ends. */
interface Copy {
  readonly run: Run;
  readonly position: number;
}

interface Fetch {
  readonly source: Source;
  readonly epoch: number;
  readonly transferId: string;
  position: number;
  copy: Copy | undefined;
  isStopped: boolean;
  /** Nothing comes any more, and nobody says why. */
  isSilent: boolean;
}

/** One attempt at the request on a decode worker, with what its sidecar would hold for it. */
export class Receiver {
  readonly #world: World;
  readonly #sources: readonly Source[];
  readonly #transferIds: readonly string[];
  readonly #plan: DecodeHandoverPlan;
  /** The client has the first token from an attempt before. */
  readonly #isResumed: boolean;
  state: DecodeHandover;
  isAlive = true;
  /** The gateway reads no more of it. */
  isForsaken = false;
  streamId = 0;
  fetch: Fetch | undefined;
  fence: "none" | "asked" = "none";
  /** Of whose position the KV is, in each place. */
  readonly memory: (number | undefined)[];
  reservation: "none" | "ticket" | "blocks" = "none";
  freedCount = 0;
  end: "joined" | "tail" | "localHit" | "finished" | "failed" | undefined;

  constructor(world: World, sources: readonly Source[], transferIds: readonly string[], isResumed: boolean) {
    this.#world = world;
    this.#sources = sources;
    this.#transferIds = transferIds;
    this.#isResumed = isResumed;
    const { promptTokenCount, tailTokenMax, hitTailTokenMax, cachedTokenCount } = world;
    this.#plan = { promptTokenCount, tailTokenMax, hitTailTokenMax, fenceWithin: TIMES.fence as Nanos };
    this.memory = Array.from({ length: cachedTokenCount }, (_, position) => position);
    this.state = newDecodeHandover((world.now + TIMES.admission) as Instant, sources.length);
  }

  get isOver(): boolean {
    return isDecodeHandoverOver(this.state);
  }

  get source(): Source | undefined {
    return this.#sources[this.#attempt - 1];
  }
  get #transferId(): string {
    return this.#transferIds[this.#attempt - 1] ?? "";
  }
  get #attempt(): number {
    return this.#sources.length - this.state.prefillsLeft;
  }

  apply(event: DecodeHandoverEvent): void {
    if (!this.isAlive) return;
    const { next, effects } = advanceDecodeHandover(this.state, event, this.#plan, this.#world.now);
    this.state = next;
    for (const effect of effects) this.#perform(effect);
  }

  hear(streamId: number, said: Said): void {
    if (streamId !== this.streamId) return;
    const leaseEnd = (this.#world.now + TIMES.lease) as Instant;
    if (said.kind === "ticket") {
      this.#epoch = said.epoch;
      this.apply({ kind: "TicketReceived", leaseEnd });
    } else if (said.kind === "heard") this.apply({ kind: "RequestHeard", ticketBy: this.#soon(TIMES.ticket) });
    else if (said.kind === "renewed") this.apply({ kind: "LeaseRenewed", leaseEnd });
    else if (said.kind === "error") this.apply({ kind: "PeerLost", error: LOST });
    else {
      const stopped = said.stopped && !this.#isResumed;
      this.apply({ kind: "FirstTokenReceived", token: FIRST_TOKEN, stopped });
    }
  }
  #epoch = 0;

  /** A heartbeat for the live transfer. */
  renew(): void {
    if (!this.isAlive || this.isOver || this.fetch === undefined || this.fetch.isStopped) return;
    this.#tell("renew");
  }

  /** One step of what happens on this worker by itself. False: nothing was to do. */
  work(): boolean {
    if (!this.isAlive) return false;
    if (this.reservation === "none" && !this.isOver) {
      this.reservation = "ticket";
      const { cachedTokenCount } = this.#world;
      this.apply({ kind: "Reserved", heardBy: this.#soon(TIMES.heard), cachedTokenCount });
      return true;
    }
    if (this.fetch?.copy !== undefined) {
      this.#endCopy(this.fetch, this.fetch.copy);
      return true;
    }
    if (this.fence === "asked") {
      this.fence = "none";
      this.fetch = undefined;
      if (this.isOver) this.#free();
      else this.apply({ kind: "Fenced", heardBy: this.#soon(TIMES.heard) });
      return true;
    }
    if (this.fetch === undefined || this.fetch.isStopped || this.fetch.isSilent) return false;
    return this.#beginCopy(this.fetch);
  }

  crash(): void {
    this.isAlive = false;
    if (this.fetch?.copy !== undefined) this.fetch.copy.run.readerCount--;
    this.fetch = undefined;
    this.reservation = "none";
  }

  checkInvariants(): void {
    if (!this.isAlive) return;
    // I2: what is reserved or taken belongs to a live transfer, or is about to be freed.
    if (this.reservation !== "none" && this.isOver) assert(this.fence === "asked", "nothing will free a reservation");
    if (!this.isOver) assert(Number.isFinite(this.state.deadline), `${this.state.kind} has no end`);
    assert(this.freedCount <= 1, "a reservation was freed twice");
    for (let position = 0; position < this.state.verifiedTokenCount; position++) {
      assert(this.memory[position] === position, `position ${position} is verified and holds ${this.memory[position]}`);
    }
  }

  #soon(after: number): Instant {
    return (this.#world.now + after) as Instant;
  }

  #perform(effect: DecodeHandoverEffect): void {
    switch (effect.kind) {
      case "RequestPrefill":
        this.streamId = this.#world.nextStreamId(this);
        this.#tell("start");
        break;
      case "OpenFetch": {
        assert(this.fetch === undefined, "I4: a second fetch is opened while one may write");
        const source = this.source;
        assert(source !== undefined, "a ticket from nobody");
        this.reservation = "blocks";
        const { verifiedTokenCount: position } = effect;
        assert(position >= this.#world.cachedTokenCount, "what is cached is fetched, over blocks that others read");
        const transferId = this.#transferId;
        this.fetch = {
          source,
          epoch: this.#epoch,
          transferId,
          position,
          copy: undefined,
          isStopped: false,
          isSilent: false,
        };
        break;
      }
      case "SendFirstToken":
        if (!this.#isResumed && !this.isForsaken) this.#world.clientGets();
        break;
      case "Join":
        assert(this.memory.length === this.#world.promptTokenCount, "joined without the whole prompt");
        this.#tell("received");
        this.#finish("joined");
        break;
      case "StopTransfer":
        this.#stop();
        break;
      case "ComputeTail":
        assert(this.fetch === undefined, "I4: the tail is computed while a fetch may write");
        assert(effect.verifiedTokenCount <= this.memory.length, "the tail begins beyond what is there");
        this.#finish(this.state.kind === "localHit" ? "localHit" : "tail");
        break;
      case "AbandonTransfer":
        this.#stop();
        break;
      case "EndStream":
        this.end = effect.error === undefined ? "finished" : "failed";
        break;
    }
  }

  #finish(end: "joined" | "tail" | "localHit"): void {
    this.end = end;
    if (this.fetch) this.fetch.isStopped = true;
    this.fence = "asked";
  }

  #stop(): void {
    if (this.streamId > 0) this.#tell("abort");
    if (this.fetch) this.fetch.isStopped = true;
    this.fence = "asked";
  }

  #tell(kind: "start" | "received" | "abort" | "renew"): void {
    if (this.source === undefined) return;
    const { streamId } = this;
    this.#world.send({ to: "source", source: this.source, kind, transferId: this.#transferId, streamId });
  }

  #beginCopy(fetch: Fetch): boolean {
    const { source, position } = fetch;
    const run = source.runs.get(fetch.transferId) ?? [...source.ending].find((r) => r.transferId === fetch.transferId);
    if (position >= this.#world.promptTokenCount) return false;
    if (source.epoch !== fetch.epoch || run?.exportState !== "open") {
      fetch.isStopped = true;
      this.apply({ kind: "PeerLost", error: { reason: "lease_expired", message: "the export is closed" } });
      return true;
    }
    if (run.computedCount <= position) return false;
    run.readerCount++;
    fetch.copy = { run, position };
    return true;
  }

  #endCopy(fetch: Fetch, { run, position }: Copy): void {
    fetch.copy = undefined;
    const isGone = fetch.source.epoch !== fetch.epoch;
    run.readerCount--;
    assert(isGone || run.hasBlocks, "I4: a block was freed while it was read");
    assert(this.reservation === "blocks", "I4: a copy writes into freed blocks");
    this.memory[position] = isGone ? -1 : position;
    if (isGone || fetch.isStopped) return;
    fetch.position = position + 1;
    const progressBy = (this.#world.now + TIMES.lease) as Instant;
    this.apply({ kind: "FramesVerified", verifiedTokenCount: fetch.position, progressBy });
  }

  #free(): void {
    assert(this.fetch === undefined, "I4: blocks are freed while a fetch may write");
    if (this.reservation === "none") return;
    this.reservation = "none";
    this.freedCount++;
  }
}
