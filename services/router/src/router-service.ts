import {
  type Identity,
  identityText,
  KvasirError,
  placementReadiness,
  type RefusedPair,
  type RequestKey,
  type RequestOutcome,
  type RequestShape,
  refusedPairs,
  type StreamId,
} from "@kvasir/core";
import type { RouterService, StoreHello, WorkerHello } from "@kvasir/proto";
import { callerOf, contextFromMetadata, type Implementation, messages } from "@kvasir/rpc";
import type { Tracer } from "@opentelemetry/api";
import { PlaceSpan } from "./place-span.ts";
import type { Router } from "./router.ts";
import {
  cacheChangeFromWire,
  factsFromHello,
  linksFromWire,
  loadFromWire,
  outcomeFromFinished,
  requestFromStart,
  safeNumber,
  storeFactsFromHello,
  wireFromDecision,
  wireFromLoad,
  wrong,
} from "./wire.ts";

type Service = Implementation<typeof RouterService>;
type PlaceCall = Parameters<Service["place"]>[0];
type AttachCall = Parameters<Service["attach"]>[0];

/** `RouterService` over a `Router`. Each stream's end, however it comes, takes out what it stood for. */
export function routerService(router: Router, tracer: Tracer): Service {
  const hellos = { workers: new Map<StreamId, WorkerHello>(), stores: new Map<StreamId, StoreHello>() };
  return {
    place: (call) => place(router, tracer, call),
    attach: (call) => attach(router, hellos, call),
    async describeCluster() {
      const workers = router.state.workers();
      const readiness = placementReadiness(workers);
      return {
        workers: workers.flatMap(({ streamId, epoch, load }) => {
          const hello = hellos.workers.get(streamId);
          if (hello === undefined) return [];
          return [{ hello, epoch: BigInt(epoch), ...(load === undefined ? {} : { load: wireFromLoad(load) }) }];
        }),
        stores: router.state.stores().flatMap(({ streamId, epoch }) => {
          const hello = hellos.stores.get(streamId);
          return hello === undefined ? [] : [{ hello, epoch: BigInt(epoch) }];
        }),
        queued: router.state.queuedCount,
        placed: router.state.placedCount,
        ready: readiness.ready,
        notReadyReason: readiness.ready ? "" : readiness.reason,
        leaderToken: BigInt(router.leaderToken),
      };
    },
  };
}

async function place(router: Router, tracer: Tracer, call: PlaceCall): Promise<void> {
  if (router.leaderToken === 0) {
    throw new KvasirError({ reason: "unavailable", message: "this router stands by; ask the one that leads" });
  }
  const parent = contextFromMetadata(call.metadata);
  const end = endOf(call);
  let asked: { readonly requestId: string; readonly request: RequestShape } | undefined;
  /** Of the placement that is asked for. */
  let span: PlaceSpan | undefined;
  /** Of the placement that was given last. */
  let given: PlaceSpan | undefined;
  let retryCount = 0;
  let outcome: RequestOutcome | undefined;
  const key: RequestKey = router.openRequest({
    queued(position) {
      span?.queued(position);
      call.write({ kind: { case: "queued", value: { position } } });
    },
    placed(decision) {
      span?.placed(decision);
      given = span;
      span = undefined;
      call.write({ kind: { case: "placed", value: wireFromDecision(decision, router.leaderToken) } });
    },
    fail: end.fail,
  });

  const read = async (): Promise<void> => {
    for await (const { kind } of messages(call)) {
      switch (kind.case) {
        case "start": {
          if (asked !== undefined) throw wrong("start", "start came twice; it is sent once, first");
          const request = requestFromStart(kind.value);
          asked = { requestId: kind.value.requestId, request };
          span = new PlaceSpan(tracer, parent, asked.requestId, request, retryCount);
          router.apply({ kind: "RequestArrived", key, request, excludedWorkerIds: kind.value.excludedWorkerIds });
          break;
        }
        case "retry":
          if (asked === undefined) throw wrong("retry", "retry came before start");
          given?.close();
          span ??= new PlaceSpan(tracer, parent, asked.requestId, asked.request, ++retryCount);
          router.apply({
            kind: "RequestRetried",
            key,
            excludedWorkerIds: kind.value.excludedWorkerIds,
            keptPrefillWorkerId: kind.value.keptPrefillWorkerId,
          });
          break;
        case "firstToken":
          if (asked === undefined) throw wrong("first_token", "first_token came before start");
          given?.firstToken();
          router.apply({ kind: "FirstTokenArrived", key });
          break;
        case "finished":
          if (asked === undefined) throw wrong("finished", "finished came before start");
          outcome = outcomeFromFinished(kind.value, asked.request);
          break;
        case undefined:
          throw wrong("kind", "the message is empty; send start, retry, first_token or finished");
      }
    }
  };
  try {
    await Promise.race([read(), end.reached]);
  } catch (error) {
    span?.failed(error);
    span = undefined;
    throw error;
  } finally {
    span?.failed(new KvasirError({ reason: "cancelled", message: "the caller left before a placement" }));
    given?.close();
    router.closeRequest(key, outcome);
  }
}

interface Hellos {
  readonly workers: Map<StreamId, WorkerHello>;
  readonly stores: Map<StreamId, StoreHello>;
}

async function attach(router: Router, hellos: Hellos, call: AttachCall): Promise<void> {
  const end = endOf(call);
  let acknowledged = 0;
  let refused: readonly RefusedPair[] = [];
  const tell = (wantsCacheSnapshot = false): void => {
    const leaderToken = BigInt(router.leaderToken);
    const refusedPairs = [...refused];
    call.write({ acknowledgedSequence: BigInt(acknowledged), leaderToken, wantsCacheSnapshot, refusedPairs });
    refused = [];
  };
  const streamId = router.openWorker({
    acknowledge(sequence) {
      acknowledged = sequence;
      tell();
    },
    leadershipChanged: tell,
    wantCacheSnapshot: () => tell(true),
    fail: end.fail,
  });
  let workerId = "unknown";
  let farewell = "its stream ended";

  const read = async (): Promise<void> => {
    for await (const { epoch: wireEpoch, sequence: wireSequence, kind } of messages(call)) {
      if (kind.case === "goodbye") {
        farewell = "it said goodbye";
        return;
      }
      const epoch = safeNumber("epoch", wireEpoch);
      const sequence = safeNumber("sequence", wireSequence);
      switch (kind.case) {
        case "hello": {
          const facts = factsFromHello(kind.value);
          checkIsItself({ role: facts.role, id: facts.workerId }, callerOf(call));
          workerId = facts.workerId;
          hellos.workers.set(streamId, kind.value);
          refused = refusedPairs(
            facts,
            router.state.workers().map((worker) => worker.facts),
          );
          for (const { workerId: other, reason } of refused) {
            router.log.warn(
              { workerId, other, reason },
              "two workers are never placed together: KV cannot move between them",
            );
          }
          router.apply({ kind: "WorkerAttached", streamId, epoch, sequence, facts });
          router.log.info(
            { workerId, epoch, role: facts.role, model: facts.model, address: facts.address },
            "a worker attached",
          );
          break;
        }
        case "storeHello": {
          const facts = storeFactsFromHello(kind.value);
          checkIsItself({ role: "store", id: facts.workerId }, callerOf(call));
          workerId = facts.workerId;
          hellos.stores.set(streamId, kind.value);
          router.apply({ kind: "StoreAttached", streamId, epoch, sequence, facts });
          router.log.info({ workerId, epoch, model: facts.model, address: facts.address }, "a store attached");
          break;
        }
        case "storeLoad":
          router.apply({
            ...{ kind: "StoreReported", streamId, epoch, sequence },
            load: { isDraining: kind.value.draining },
          });
          break;
        case "load":
          router.apply({
            ...{ kind: "WorkerReported", streamId, epoch, sequence },
            ...{ load: loadFromWire(kind.value), links: linksFromWire(kind.value, router.now()) },
          });
          break;
        case "cache": {
          const change = cacheChangeFromWire(epoch, kind.value);
          router.apply({ kind: "WorkerCacheChanged", streamId, epoch, sequence, change });
          break;
        }
        case undefined:
          throw wrong("kind", "the message is empty; send hello, store_hello, load, store_load, cache or goodbye");
      }
    }
  };
  try {
    await Promise.race([read(), end.reached]);
  } catch (error) {
    farewell = error instanceof Error ? error.message : String(error);
    throw error;
  } finally {
    router.closeWorker(streamId);
    hellos.workers.delete(streamId);
    hellos.stores.delete(streamId);
    router.log.info({ workerId, farewell }, "a worker left");
  }
}

/** With mutual TLS nobody attaches under another's name. */
function checkIsItself(named: Identity, caller: Identity | undefined): void {
  if (caller === undefined || (caller.id === named.id && caller.role === named.role)) return;
  const message = `hello is of ${identityText(named)}, the certificate of ${identityText(caller)}; a worker attaches as itself`;
  throw new KvasirError({ reason: "permission_denied", message });
}

/** The end that does not come by reading: the peer's cancel (a clean end, nobody listens any more), or a failure of ours. */
function endOf(call: PlaceCall | AttachCall): { readonly reached: Promise<void>; fail(error: KvasirError): void } {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  // It may fail before anybody waits for it.
  promise.catch(() => undefined);
  call.once("cancelled", () => resolve());
  call.once("close", () => resolve());
  if (call.cancelled) resolve();
  return { reached: promise, fail: reject };
}
