import { unreachable } from "../kvasir-error.ts";
import type { Instant } from "../time.ts";
import {
  type AttachedWorker,
  ClusterView,
  type ClusterViewOptions,
  isOpen,
  type StreamId,
  type ViewOutcome,
} from "./cluster-view.ts";
import type { LinkBelief } from "./link-belief.ts";
import type { PrefixOverlap } from "./prefix-overlap.ts";
import { NOTHING_RESERVED, type Reserved } from "./reservations.ts";
import type { RouterEffect, RouterEvent } from "./router-events.ts";
import type { AttachedStore, StoreFacts, StoreLoad } from "./store-facts.ts";

/** What attach streams say. */
export type AttachEvent = Extract<
  RouterEvent,
  {
    readonly kind:
      | "WorkerAttached"
      | "WorkerReported"
      | "WorkerCacheChanged"
      | "WorkerLeft"
      | "StoreAttached"
      | "StoreReported";
  }
>;

/** Who is attached, workers and stores, what they have cached, and what they measured of links: both follow one protocol, and neither is taken for the other. */
export class Attachments {
  readonly view: ClusterView;
  readonly #stores: ClusterView<StoreFacts, StoreLoad>;
  readonly #overlap: PrefixOverlap;
  readonly #links: LinkBelief;
  readonly #reservedOf: (incarnation: string) => Reserved;

  constructor(
    options: ClusterViewOptions,
    overlap: PrefixOverlap,
    links: LinkBelief,
    reservedOf: (incarnation: string) => Reserved,
  ) {
    this.view = new ClusterView(options);
    this.#stores = new ClusterView(options);
    this.#overlap = overlap;
    this.#links = links;
    this.#reservedOf = reservedOf;
  }

  /** Attached workers, by id. */
  workers(): readonly AttachedWorker[] {
    return byId(this.view.workers());
  }

  /** Attached stores, by id. */
  stores(): readonly AttachedStore[] {
    return byId(this.#stores.workers());
  }

  /** Those that lend to anybody. */
  openStores(): readonly AttachedStore[] {
    return [...this.#stores.workers()].filter(isOpen);
  }

  apply(event: AttachEvent, now: Instant, effects: RouterEffect[]): void {
    const { streamId } = event;
    switch (event.kind) {
      case "WorkerAttached": {
        const outcome = this.view.attach(streamId, event.facts, event.epoch, event.sequence, now);
        this.#answer(event, outcome, effects, "worker");
        if (outcome.kind === "accepted") this.#links.forget(event.facts.workerId);
        break;
      }
      case "StoreAttached":
        this.#answer(
          event,
          this.#stores.attach(streamId, event.facts, event.epoch, event.sequence, now),
          effects,
          "store",
        );
        break;
      case "WorkerReported": {
        const { epoch, sequence, load, links = [] } = event;
        const workerId = this.view.workerIdOf(streamId);
        const outcome = this.view.report(streamId, epoch, sequence, load, this.#reservedOf, now);
        this.#answer(event, outcome, effects, "worker");
        if (outcome.kind === "accepted" && workerId !== undefined) this.#links.told(workerId, links);
        break;
      }
      case "StoreReported": {
        const { epoch, sequence, load } = event;
        const nothing = () => NOTHING_RESERVED;
        this.#answer(event, this.#stores.report(streamId, epoch, sequence, load, nothing, now), effects, "store");
        break;
      }
      case "WorkerCacheChanged": {
        const { epoch, sequence, change } = event;
        const storeId = this.#stores.workerIdOf(streamId);
        const workerId = this.view.workerIdOf(streamId);
        const view = storeId === undefined ? this.view : this.#stores;
        const outcome = view.follow(streamId, epoch, sequence, now);
        this.#answer(event, outcome, effects, storeId === undefined ? "worker" : "store");
        if (outcome.kind === "refused") break;
        const taken =
          storeId === undefined
            ? this.#overlap.apply(workerId ?? "", change)
            : this.#overlap.applyOfStore(storeId, change);
        if (taken.kind === "needs_snapshot" && taken.isNew) effects.push({ kind: "WantCacheSnapshot", streamId });
        break;
      }
      case "WorkerLeft":
        this.#forget({ workerId: this.view.leave(streamId, now), storeId: this.#stores.leave(streamId, now) });
        break;
      default:
        unreachable(event);
    }
  }

  /** Answers with the ids of workers that just went silent. */
  advance(now: Instant): readonly string[] {
    this.#stores.advance(now);
    return this.view.advance(now);
  }

  #answer(
    { streamId, sequence }: { readonly streamId: StreamId; readonly sequence: number },
    outcome: ViewOutcome,
    effects: RouterEffect[],
    who: "worker" | "store",
  ): void {
    if (outcome.kind === "refused") {
      const { lostWorkerId } = outcome;
      this.#forget(who === "store" ? { storeId: lostWorkerId } : { workerId: lostWorkerId });
      effects.push({ kind: "RefuseWorker", streamId, message: outcome.message });
      return;
    }
    if (outcome.supersededStreamId !== undefined) {
      const message = `a newer stream of this ${who} has taken over`;
      effects.push({ kind: "RefuseWorker", streamId: outcome.supersededStreamId, message });
    }
    effects.push({ kind: "AcknowledgeWorker", streamId, sequence });
  }

  #forget({
    workerId,
    storeId,
  }: {
    readonly workerId?: string | undefined;
    readonly storeId?: string | undefined;
  }): void {
    if (workerId !== undefined) {
      this.#overlap.workerLeft(workerId);
      this.#links.forget(workerId);
    }
    if (storeId !== undefined) this.#overlap.storeLeft(storeId);
  }
}

function byId<M extends { readonly facts: { readonly workerId: string } }>(members: Iterable<M>): readonly M[] {
  return [...members].sort((a, b) => (a.facts.workerId < b.facts.workerId ? -1 : 1));
}
