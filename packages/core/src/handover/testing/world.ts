import { assert } from "../../assert.ts";
import type { Token } from "../../scheduler/events.ts";
import type { Instant } from "../../time.ts";
import { Receiver } from "./receiver.ts";
import { Source } from "./source.ts";

export const FIRST_TOKEN: Token = { tokenId: 5, topLogprobs: [] };
export const TIMES = { admission: 20, heard: 10, ticket: 25, lease: 40, adoption: 15, fence: 30, tombstone: 200 };
const ATTEMPTS_MAX = 3;

/** What a prefill worker says on a stream. */
export type Said =
  | { readonly kind: "heard" }
  | { readonly kind: "ticket"; readonly epoch: number }
  | { readonly kind: "firstToken"; readonly stopped: boolean }
  | { readonly kind: "renewed" }
  | { readonly kind: "error" };

export type Message =
  | { readonly to: "receiver"; readonly streamId: number; readonly said: Said }
  | {
      readonly to: "source";
      readonly source: Source;
      readonly kind: "start" | "received" | "abort" | "renew" | "broken";
      readonly transferId: string;
      readonly streamId: number;
    };

export interface WorldOptions {
  readonly promptTokenCount: number;
  readonly tailTokenMax: number;
  readonly hitTailTokenMax: number;
  /** Of the prompt, in the cache of whoever decodes; fewer than all. */
  readonly cachedTokenCount: number;
  readonly sourceCount: number;
  /** The first token ends the answer. */
  readonly isFinal: boolean;
}

/**
 * One request, its gateway, prefill and decode workers, and a transport that loses, repeats, delays, reorders and cuts. Every number of a
 * schedule is one thing that happens; after each the invariants of both sides hold.
 */
export class World {
  now = 0 as Instant;
  readonly promptTokenCount: number;
  readonly tailTokenMax: number;
  readonly hitTailTokenMax: number;
  readonly cachedTokenCount: number;
  readonly isFinal: boolean;
  readonly buriedAt = new Set<string>();
  readonly sources: readonly Source[];
  readonly receivers: Receiver[] = [];
  messages: Message[] = [];
  readonly #streams = new Map<number, Receiver>();
  /** One for each prefill worker: an attempt that follows asks for the same transfers again. */
  readonly #transferIds: readonly string[];
  #firstTokenCount = 0;
  #isCancelled = false;
  outcome: "answered" | "failed" | "cancelled" | undefined;

  constructor(options: WorldOptions) {
    this.promptTokenCount = options.promptTokenCount;
    this.tailTokenMax = options.tailTokenMax;
    this.hitTailTokenMax = options.hitTailTokenMax;
    this.cachedTokenCount = Math.min(options.cachedTokenCount, options.promptTokenCount - 1);
    this.isFinal = options.isFinal;
    this.sources = Array.from({ length: options.sourceCount }, (_, index) => new Source(this, index));
    this.#transferIds = this.sources.map((_, index) => `t${index}`);
    this.#attempt();
  }

  send(message: Message): void {
    this.messages.push(message);
  }

  nextStreamId(receiver: Receiver): number {
    const streamId = this.#streams.size + 1;
    this.#streams.set(streamId, receiver);
    return streamId;
  }

  clientGets(): void {
    this.#firstTokenCount++;
    assert(this.#firstTokenCount === 1, "the client got its first token twice");
  }

  /** What a number means now. */
  step(number: number): void {
    const pick = number >>> 8;
    const action = number & 0xff;
    if (action < 90) this.#work(pick);
    else if (action < 170) this.#deliver(pick, true);
    else if (action < 180) this.#deliver(pick, false);
    else if (action < 188) this.messages.splice(pick % Math.max(1, this.messages.length), 1);
    else if (action < 212) this.pass(1 + (pick % 12));
    else if (action < 228) for (const receiver of this.receivers) receiver.renew();
    else if (action < 236) this.#cut(pick);
    else if (action < 240) this.#crashReceiver();
    else if (action < 243) this.#crashSource(this.sources[pick % this.sources.length]);
    else if (action < 247) this.#forsake();
    else if (action < 249) this.#cancel();
    else this.#deliver(0, true);
    this.#gateway();
    this.checkInvariants();
  }

  pass(elapsed: number): void {
    this.now = (this.now + elapsed) as Instant;
    for (const source of this.sources) for (const run of source.all()) run.apply({ kind: "TimePassed" });
    for (const receiver of this.receivers) receiver.apply({ kind: "TimePassed" });
  }

  /** Nothing goes wrong any more, but nobody sends heartbeats either: within the longest lease all is over and free. */
  settle(): void {
    for (let round = 0; round < 400; round++) {
      let moved = this.messages.length > 0;
      while (this.messages.length > 0) this.#deliver(0, true);
      for (const worker of this.#workers()) moved = worker.work() || moved;
      this.#gateway();
      this.checkInvariants();
      if (!moved) this.pass(5);
    }
    assert(this.outcome !== undefined, "the request never ends");
    for (const source of this.sources) for (const run of source.all()) assert(!run.hasBlocks, "blocks stay pinned");
    for (const receiver of this.receivers) {
      assert(!receiver.isAlive || receiver.reservation === "none", "a reservation stays");
      assert(receiver.fetch === undefined, "a fetch never ends");
    }
  }

  checkInvariants(): void {
    for (const source of this.sources) for (const run of source.all()) run.checkInvariants();
    for (const receiver of this.receivers) receiver.checkInvariants();
  }

  #workers(): readonly { work(): boolean }[] {
    return [...this.receivers, ...this.sources.flatMap((source) => source.all())];
  }

  #work(pick: number): void {
    const workers = this.#workers();
    for (let offset = 0; offset < workers.length; offset++) {
      if (workers[(pick + offset) % workers.length]?.work()) return;
    }
  }

  #deliver(pick: number, once: boolean): void {
    const index = pick % Math.max(1, this.messages.length);
    const message = once ? this.messages.splice(index, 1)[0] : this.messages[index];
    if (message === undefined) return;
    if (message.to === "receiver") {
      this.#streams.get(message.streamId)?.hear(message.streamId, message.said);
      return;
    }
    const { source, transferId, streamId } = message;
    if (message.kind === "broken") source.broken(transferId, streamId);
    else source[message.kind](transferId, streamId);
  }

  /**
   * The way between the youngest decode worker and its prefill worker: its KV stops without a word, or the stream breaks, for one side at once
   * and for the other sooner, later or never.
   */
  #cut(pick: number): void {
    const receiver = this.receivers.at(-1);
    if (receiver === undefined || receiver.source === undefined) return;
    const { streamId, fetch } = receiver;
    if (pick % 3 === 0 && fetch !== undefined) {
      fetch.isSilent = true;
      return;
    }
    this.messages = this.messages.filter((message) => message.streamId !== streamId);
    this.#breakFor(receiver);
    if (pick % 2 === 0) this.send({ to: "receiver", streamId, said: { kind: "error" } });
  }

  #breakFor({ source, streamId }: Receiver): void {
    if (source === undefined) return;
    const transferId = this.#transferIds[source.index] ?? "";
    this.send({ to: "source", source, kind: "broken", transferId, streamId });
  }

  #crashReceiver(): void {
    const receiver = this.receivers.at(-1);
    if (receiver === undefined || !receiver.isAlive) return;
    receiver.crash();
    this.#breakFor(receiver);
  }

  #crashSource(source: Source | undefined): void {
    if (source === undefined) return;
    source.crash();
    for (const receiver of this.receivers) {
      if (receiver.source !== source || receiver.streamId === 0) continue;
      this.send({ to: "receiver", streamId: receiver.streamId, said: { kind: "error" } });
    }
  }

  /** The gateway holds a silent decode worker for lost; the worker learns of it when it can. */
  #forsake(): void {
    const receiver = this.receivers.at(-1);
    if (receiver !== undefined) receiver.isForsaken = true;
  }

  #cancel(): void {
    this.#isCancelled = true;
    for (const receiver of this.receivers) receiver.apply({ kind: "Cancelled" });
  }

  #gateway(): void {
    const receiver = this.receivers.at(-1);
    if (receiver === undefined || this.outcome !== undefined) return;
    const isAnswer = receiver.end !== undefined && receiver.end !== "failed" && !receiver.isForsaken;
    if (isAnswer) this.outcome = "answered";
    else if (this.#isCancelled) this.outcome = "cancelled";
    else if (receiver.isAlive && !receiver.isForsaken && receiver.end === undefined) return;
    else if (this.receivers.length === ATTEMPTS_MAX) this.outcome = "failed";
    else if (this.#firstTokenCount > 0 && this.isFinal) this.outcome = "answered";
    else this.#attempt();
    if (this.outcome !== undefined && receiver.isForsaken) receiver.apply({ kind: "Cancelled" });
  }

  #attempt(): void {
    const isResumed = this.#firstTokenCount > 0;
    this.receivers.push(new Receiver(this, this.sources, this.#transferIds, isResumed));
  }
}
