import { addNanos, type Instant, type Nanos } from "../time.ts";
import { incarnationOf, NOTHING_RESERVED, type Reserved } from "./reservations.ts";
import type { ReportedLoad, WorkerFacts } from "./worker-facts.ts";

/** Names one attach stream; never used twice. */
export type StreamId = number;

/** A worker, or a store, as its attach stream told it. */
export interface AttachedMember<Facts, Load> {
  readonly facts: Facts;
  readonly epoch: number;
  /** Names worker and epoch. */
  readonly incarnation: string;
  readonly streamId: StreamId;
  /** Of the last event taken. */
  readonly sequence: number;
  /** Absent until the first report; nothing is placed before it. */
  readonly load: Load | undefined;
  /** What this router had reserved there when `load` came in: the part of that load it knew of already. */
  readonly reservedAtReport: Reserved;
  readonly reportedAt: Instant;
  /** It has not reported for too long; nothing is placed on it until it does. */
  readonly isLost: boolean;
}

export type AttachedWorker = AttachedMember<WorkerFacts, ReportedLoad>;

/** Whether new requests may be placed on it: it has reported, is not silent, and does not drain. */
export function isOpen(worker: AttachedMember<unknown, { readonly isDraining: boolean }>): boolean {
  return worker.load !== undefined && !worker.load.isDraining && !worker.isLost;
}

/** Every way an event of a stream can end. `refused` ends the stream, and its worker with it. */
export type ViewOutcome =
  | { readonly kind: "accepted"; readonly supersededStreamId?: StreamId }
  | {
      readonly kind: "refused";
      readonly message: string;
      /** The worker that the stream stood for until now. */
      readonly lostWorkerId: string | undefined;
    };

export interface ClusterViewOptions {
  /** Silence after which a worker counts as lost. Larger: requests are sent to the dead. Smaller: a long step looks like death. */
  readonly silenceMax: Nanos;
  /** How long a worker that left still counts as one that may return. */
  readonly returnGrace: Nanos;
}

/** Worker ids whose last epoch is kept for fencing after they left; the oldest is forgotten first. */
const REMEMBERED_EPOCH_MAX = 4_096;

/**
 * Which workers are attached, in which incarnation. The rules, so that no report of a dead incarnation is ever believed:
 * an epoch never goes back, the sequence of a stream goes up by one, and the newest stream of a worker is the one that counts.
 */
export class ClusterView<
  Facts extends { readonly workerId: string } = WorkerFacts,
  Load extends { readonly isDraining: boolean } = ReportedLoad,
> {
  readonly #options: ClusterViewOptions;
  readonly #workers = new Map<string, AttachedMember<Facts, Load>>();
  readonly #workerIdByStream = new Map<StreamId, string>();
  readonly #lastEpoch = new Map<string, number>();
  readonly #departed = new Map<string, { readonly facts: Facts; readonly until: Instant }>();
  #version = 0;

  constructor(options: ClusterViewOptions) {
    this.#options = options;
  }

  /** Changes whenever the set of workers that can be placed on does. */
  get version(): number {
    return this.#version;
  }

  get size(): number {
    return this.#workers.size;
  }

  get(workerId: string): AttachedMember<Facts, Load> | undefined {
    return this.#workers.get(workerId);
  }

  workers(): IterableIterator<AttachedMember<Facts, Load>> {
    return this.#workers.values();
  }

  /** Workers that left a moment ago and may be restarting. */
  departed(): readonly Facts[] {
    return [...this.#departed.values()].map((entry) => entry.facts);
  }

  attach(streamId: StreamId, facts: Facts, epoch: number, sequence: number, now: Instant): ViewOutcome {
    const { workerId } = facts;
    const lastEpoch = this.#lastEpoch.get(workerId) ?? 0;
    if (epoch < lastEpoch) {
      return this.#refuse(
        streamId,
        `worker ${workerId} has epoch ${lastEpoch} now; a hello of epoch ${epoch} is too late`,
        now,
      );
    }
    if (sequence !== 1) {
      return this.#refuse(streamId, `hello of ${workerId} has sequence ${sequence}; it starts at 1`, now);
    }
    const earlierId = this.#workerIdByStream.get(streamId);
    if (earlierId !== undefined && (earlierId !== workerId || epoch <= lastEpoch)) {
      return this.#refuse(streamId, `second hello of ${workerId} on one stream needs a new epoch, not ${epoch}`, now);
    }
    const present = this.#workers.get(workerId);
    const supersededStreamId = present !== undefined && present.streamId !== streamId ? present.streamId : undefined;
    if (supersededStreamId !== undefined) this.#workerIdByStream.delete(supersededStreamId);

    this.#workerIdByStream.set(streamId, workerId);
    this.#departed.delete(workerId);
    this.#remember(workerId, epoch);
    this.#workers.set(workerId, {
      facts,
      epoch,
      incarnation: incarnationOf(workerId, epoch),
      streamId,
      sequence,
      load: undefined,
      reservedAtReport: NOTHING_RESERVED,
      reportedAt: now,
      isLost: false,
    });
    this.#version++;
    return supersededStreamId === undefined ? { kind: "accepted" } : { kind: "accepted", supersededStreamId };
  }

  /** The next message of a worker's stream, whatever it says. */
  follow(streamId: StreamId, epoch: number, sequence: number, now: Instant): ViewOutcome {
    const worker = this.#byStream(streamId);
    if (worker === undefined) return this.#refuse(streamId, "a report came on a stream without a live hello", now);
    const { workerId } = worker.facts;
    if (epoch !== worker.epoch) {
      return this.#refuse(streamId, `report of ${workerId} has epoch ${epoch}; its hello had ${worker.epoch}`, now);
    }
    if (sequence !== worker.sequence + 1) {
      return this.#refuse(streamId, `report of ${workerId} has sequence ${sequence} after ${worker.sequence}`, now);
    }
    this.#workers.set(workerId, { ...worker, sequence });
    return { kind: "accepted" };
  }

  /** The id of the worker that a stream stands for. */
  workerIdOf(streamId: StreamId): string | undefined {
    return this.#workerIdByStream.get(streamId);
  }

  /** `reservedOf`: what this router holds on an incarnation now. */
  report(
    streamId: StreamId,
    epoch: number,
    sequence: number,
    load: Load,
    reservedOf: (incarnation: string) => Reserved,
    now: Instant,
  ): ViewOutcome {
    const outcome = this.follow(streamId, epoch, sequence, now);
    const worker = this.#byStream(streamId);
    if (outcome.kind === "refused" || worker === undefined) return outcome;
    const { workerId } = worker.facts;
    if (worker.load?.isDraining !== load.isDraining || worker.isLost) this.#version++;
    this.#workers.set(workerId, {
      ...worker,
      load,
      reservedAtReport: reservedOf(worker.incarnation),
      reportedAt: now,
      isLost: false,
    });
    return { kind: "accepted" };
  }

  /** The stream ended, however it did: its worker is out at once. The worker's id, if the stream still stood for one. */
  leave(streamId: StreamId, now: Instant): string | undefined {
    const worker = this.#byStream(streamId);
    this.#workerIdByStream.delete(streamId);
    if (worker === undefined) return undefined;
    const { workerId } = worker.facts;
    this.#workers.delete(workerId);
    this.#departed.set(workerId, { facts: worker.facts, until: addNanos(now, this.#options.returnGrace) });
    this.#version++;
    return workerId;
  }

  /** Marks the workers that went silent and forgets those that did not return; answers with the ids newly lost. */
  advance(now: Instant): readonly string[] {
    const lost: string[] = [];
    for (const [workerId, worker] of this.#workers) {
      if (worker.isLost || now < addNanos(worker.reportedAt, this.#options.silenceMax)) continue;
      this.#workers.set(workerId, { ...worker, isLost: true });
      lost.push(workerId);
      this.#version++;
    }
    for (const [workerId, entry] of this.#departed) {
      if (now < entry.until) continue;
      this.#departed.delete(workerId);
      this.#version++;
    }
    return lost;
  }

  #byStream(streamId: StreamId): AttachedMember<Facts, Load> | undefined {
    const workerId = this.#workerIdByStream.get(streamId);
    return workerId === undefined ? undefined : this.#workers.get(workerId);
  }

  #refuse(streamId: StreamId, message: string, now: Instant): ViewOutcome {
    return { kind: "refused", message, lostWorkerId: this.leave(streamId, now) };
  }

  #remember(workerId: string, epoch: number): void {
    this.#lastEpoch.delete(workerId);
    this.#lastEpoch.set(workerId, epoch);
    if (this.#lastEpoch.size <= REMEMBERED_EPOCH_MAX) return;
    const oldest = this.#lastEpoch.keys().next().value;
    if (oldest !== undefined) this.#lastEpoch.delete(oldest);
  }
}
