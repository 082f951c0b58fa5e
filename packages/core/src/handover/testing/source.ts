import { assert } from "../../assert.ts";
import type { Instant } from "../../time.ts";
import {
  advancePrefillHandover,
  isPrefillHandoverOver,
  newPrefillHandover,
  type PrefillHandover,
  type PrefillHandoverEffect,
  type PrefillHandoverEvent,
} from "../prefill-handover.ts";
import { Tombstones } from "../tombstones.ts";
import { FIRST_TOKEN, type Said, TIMES, type World } from "./world.ts";

/** One hand-over on a prefill worker, with what its sidecar would hold for it. */
export class Run {
  readonly transferId: string;
  readonly #source: Source;
  state: PrefillHandover;
  /** Of the decode side that is heard. */
  streamId: number;
  readonly said: Said[] = [];
  hasBlocks = false;
  exportState: "none" | "opening" | "open" | "closing" | "closed" = "none";
  computedCount = 0;
  readerCount = 0;
  freedCount = 0;

  constructor(source: Source, transferId: string, streamId: number) {
    this.#source = source;
    this.transferId = transferId;
    this.streamId = streamId;
    this.state = newPrefillHandover((source.world.now + TIMES.admission) as Instant);
  }

  get isOver(): boolean {
    return isPrefillHandoverOver(this.state);
  }

  apply(event: PrefillHandoverEvent): void {
    const { next, effects } = advancePrefillHandover(this.state, event, this.#source.world.now);
    this.state = next;
    for (const effect of effects) this.#perform(effect);
  }

  /** One step of what happens on this worker by itself. False: nothing was to do. */
  work(): boolean {
    const { world } = this.#source;
    if (this.exportState === "opening") {
      this.exportState = this.isOver ? "closing" : "open";
      this.apply({ kind: "ExportOpened" });
      return true;
    }
    if (this.exportState === "closing" && this.readerCount === 0) {
      this.exportState = "closed";
      this.#free();
      return true;
    }
    if (this.isOver) return false;
    if (!this.hasBlocks) {
      this.hasBlocks = true;
      this.apply({ kind: "BlocksTaken", leaseEnd: (world.now + TIMES.lease) as Instant });
      return true;
    }
    if (this.exportState !== "open" || this.computedCount === world.promptTokenCount) return false;
    if (this.computedCount === 0) this.apply({ kind: "StepPlanned" });
    this.computedCount++;
    if (this.computedCount === world.promptTokenCount) {
      this.apply({ kind: "TokenSampled", token: FIRST_TOKEN, stopped: world.isFinal });
    }
    return true;
  }

  checkInvariants(): void {
    // I1: what is pinned is under one lease that ends, or is about to be freed.
    if (this.hasBlocks && !this.isOver) assert(Number.isFinite(this.state.deadline), "pinned blocks without an end");
    if (this.hasBlocks && this.isOver) {
      assert(this.exportState === "opening" || this.exportState === "closing", "nothing will free pinned blocks");
    }
    assert(this.freedCount <= 1, "blocks were freed twice");
    assert(this.readerCount >= 0, "a reader left twice");
  }

  #perform(effect: PrefillHandoverEffect): void {
    switch (effect.kind) {
      case "OpenExport":
        this.exportState = "opening";
        break;
      case "SendTicket":
        this.#say({ kind: "ticket", epoch: this.#source.epoch });
        break;
      case "SendFirstToken":
        this.#say({ kind: "firstToken", stopped: effect.stopped });
        break;
      case "FreeBlocks":
        if (this.exportState === "open") this.exportState = "closing";
        else if (this.exportState === "none") this.#free();
        break;
      case "EndStream":
        if (effect.error) this.#say({ kind: "error" });
        this.#source.bury(this);
        break;
    }
  }

  #say(said: Said): void {
    this.said.push(said);
    this.#source.world.send({ to: "receiver", streamId: this.streamId, said });
  }

  #free(): void {
    assert(this.readerCount === 0, "I4: blocks are freed while a copy reads them");
    if (!this.hasBlocks) return;
    this.hasBlocks = false;
    this.freedCount++;
  }
}

/** A prefill worker: hand-overs by transfer id, and the ids of those that are over. */
export class Source {
  readonly world: World;
  readonly index: number;
  readonly runs = new Map<string, Run>();
  /** Those that are over and whose blocks are not free yet. */
  readonly ending = new Set<Run>();
  #tombstones = new Tombstones();
  epoch = 1;

  constructor(world: World, index: number) {
    this.world = world;
    this.index = index;
  }

  start(transferId: string, streamId: number): void {
    this.world.send({ to: "receiver", streamId, said: { kind: "heard" } });
    const known = this.runs.get(transferId);
    if (known !== undefined) {
      // A repetition of a stream that was taken over changes nothing: streams are numbered in their order.
      if (streamId < known.streamId) return;
      known.streamId = streamId;
      known.apply({ kind: "PeerAdopted" });
      for (const said of known.said) this.world.send({ to: "receiver", streamId, said });
      return;
    }
    if (this.#tombstones.has(transferId, this.world.now)) {
      this.world.send({ to: "receiver", streamId, said: { kind: "error" } });
      return;
    }
    assert(!this.world.buriedAt.has(`${this.index}.${this.epoch}.${transferId}`), "a transfer that is over began anew");
    this.runs.set(transferId, new Run(this, transferId, streamId));
  }

  /** The peer, or somebody for it, wants nothing more; this may overtake the start. */
  abort(transferId: string, streamId: number): void {
    const run = this.runs.get(transferId);
    if (run === undefined) this.#tombstone(transferId);
    else if (run.streamId === streamId) run.apply({ kind: "PeerClosed" });
  }

  received(transferId: string, streamId: number): void {
    const run = this.runs.get(transferId);
    if (run?.streamId === streamId) run.apply({ kind: "PeerReceived" });
  }

  renew(transferId: string, streamId: number): void {
    const run = this.runs.get(transferId);
    const leaseEnd = (this.world.now + TIMES.lease) as Instant;
    if (run?.streamId === streamId) run.apply({ kind: "LeaseRenewed", leaseEnd });
    const said: Said = run === undefined ? { kind: "error" } : { kind: "renewed" };
    this.world.send({ to: "receiver", streamId, said });
  }

  broken(transferId: string, streamId: number): void {
    const run = this.runs.get(transferId);
    const adoptBy = (this.world.now + TIMES.adoption) as Instant;
    if (run?.streamId === streamId) run.apply({ kind: "PeerLost", adoptBy });
  }

  bury(run: Run): void {
    this.runs.delete(run.transferId);
    this.ending.add(run);
    this.#tombstone(run.transferId);
  }

  /** Everything of this worker and its sidecar is gone; another incarnation is there at once. */
  crash(): void {
    this.runs.clear();
    this.ending.clear();
    this.#tombstones = new Tombstones();
    this.epoch++;
  }

  all(): Run[] {
    return [...this.runs.values(), ...this.ending];
  }

  #tombstone(transferId: string): void {
    this.#tombstones.add(transferId, (this.world.now + TIMES.tombstone) as Instant);
    this.world.buriedAt.add(`${this.index}.${this.epoch}.${transferId}`);
  }
}
