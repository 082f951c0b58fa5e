import { Metadata } from "@grpc/grpc-js";
import { addNanos, KvasirError, nanosFromMs, Tombstones } from "@kvasir/core";
import type { PrefillService, RunRequest, RunStart } from "@kvasir/proto";
import { contextFromMetadata, type Implementation, messages } from "@kvasir/rpc";
import type { Tracer } from "@opentelemetry/api";
import { now } from "../clock.ts";
import type { Lenders } from "../fetch/borrow.ts";
import type { Incarnation } from "../incarnation.ts";
import { invalid } from "../invalid.ts";
import { checkEpoch, checkQueue, checkRequest, tooLarge } from "../request-check.ts";
import type { RequestMeter } from "../request-meter.ts";
import { endSpan, startSpan } from "../tracing.ts";
import { PrefillRun, type RunCall } from "./prefill-run.ts";

const TRANSFER_ID_BYTES = 16;
/** Time for a gateway to notice that a decode worker is lost and to place its request elsewhere. Larger: less is computed twice; smaller: blocks return sooner. */
export const ADOPTION_MS = 3_000;

export interface PrefillServiceOptions {
  readonly workerId: string;
  readonly current: () => Incarnation | undefined;
  readonly tracer: Tracer;
  readonly leaseMs: number;
  readonly admissionWaitMs: number;
  readonly requests: RequestMeter;
  readonly lenders: Lenders;
  /** Tells of each hand-over's start and end. */
  readonly onRun: (change: 1 | -1) => void;
}

/** `PrefillService`: many hand-overs, one for each transfer id. */
export function prefillService(options: PrefillServiceOptions): Implementation<typeof PrefillService> {
  const runs = new Map<string, { readonly run: PrefillRun; readonly epoch: bigint }>();
  const tombstones = new Tombstones();

  function start(request: RunStart, call: RunCall): PrefillRun {
    const incarnation = checkEpoch(options.current(), request.expectedEpoch);
    if (request.transferId.length !== TRANSFER_ID_BYTES) {
      const length = request.transferId.length;
      throw invalid("transfer_id", `transfer_id has ${length} bytes, must have ${TRANSFER_ID_BYTES}`);
    }
    const key = Buffer.from(request.transferId).toString("hex");
    const known = runs.get(key);
    if (known && known.epoch === incarnation.epoch) return known.run;
    if (tombstones.has(key, now())) {
      const message = `transfer ${key} is already over; start again with a new transfer_id`;
      throw new KvasirError({ reason: "lease_expired", message });
    }
    checkLayout(request, incarnation);
    const traced = startSpan(options.tracer, "prefill.run", contextFromMetadata(call.metadata), {
      "kvasir.worker_id": options.workerId,
      "kvasir.request_id": request.requestId,
      "kvasir.prompt_tokens": request.promptTokenIds.length,
    });
    let run: PrefillRun;
    try {
      checkQueue(incarnation);
      const checked = checkRequest(request, incarnation);
      if (!fits(checked.promptTokenIds, incarnation)) throw tooLarge(incarnation);
      const { tracer, requests, workerId, admissionWaitMs, leaseMs } = options;
      const { transferId } = request;
      const facts = {
        incarnation,
        workerId,
        transferId,
        request: checked,
        admissionWaitMs,
        leaseMs,
        adoptionMs: Math.min(ADOPTION_MS, leaseMs),
        tracer,
        traced,
        requests,
        requestId: request.requestId,
        lenders: options.lenders,
        fetch: request.fetch,
      };
      run = new PrefillRun(facts);
    } catch (error) {
      endSpan(traced.span, error instanceof Error ? error : undefined);
      throw error;
    }
    runs.set(key, { run, epoch: incarnation.epoch });
    options.onRun(1);
    void run.over.then(() => {
      options.onRun(-1);
      runs.delete(key);
      tombstones.add(key, addNanos(now(), nanosFromMs(options.leaseMs)));
    });
    return run;
  }

  return {
    async run(call) {
      call.sendMetadata(new Metadata());
      const ended = Promise.withResolvers<never>();
      let run: PrefillRun | undefined;
      call.on("cancelled", () => {
        run?.lost(call);
        ended.reject(new KvasirError({ reason: "cancelled", message: "the caller went away" }));
      });
      const served = (async () => {
        const requests = messages(call);
        const first = await requests.next();
        if (first.done || first.value.kind.case !== "start")
          throw invalid("start", "the first message must be `start`");
        const constraint = first.value.kind.value.sampling?.constraint;
        if (constraint) await options.current()?.kernel.prepareConstraint(constraint);
        if (call.cancelled) return;
        run = start(first.value.kind.value, call);
        const done = run.serve(call);
        void listen(requests, run, call);
        await done;
      })();
      served.catch(() => undefined);
      ended.promise.catch(() => undefined);
      await Promise.race([served, ended.promise]);
    },
    async renew({ transferIds }) {
      const unknownTransferIds = transferIds.filter((transferId) => {
        const known = runs.get(Buffer.from(transferId).toString("hex"));
        known?.run.renew();
        return known === undefined;
      });
      return { unknownTransferIds, leaseMs: options.leaseMs };
    },
  };
}

/** Reads on until `received`, `aborted` or the end of the caller's side. */
async function listen(requests: AsyncIterable<RunRequest>, run: PrefillRun, call: RunCall): Promise<void> {
  try {
    for await (const request of requests) {
      if (request.kind.case === "received") run.received(call);
      else if (request.kind.case === "aborted") run.closed(call);
    }
  } catch {
    // Broken or ended without a word: the same.
  }
  run.lost(call);
}

function checkLayout(request: RunStart, incarnation: Incarnation): void {
  const { fingerprint } = incarnation.layout;
  if (Buffer.compare(request.layoutFingerprint, fingerprint) === 0) return;
  const [theirs, ours] = [request.layoutFingerprint, fingerprint].map((bytes) => Buffer.from(bytes).toString("hex"));
  const message = `the decode side's KV is of layout ${theirs}, ours of ${ours}; both must serve the same model`;
  throw new KvasirError({ reason: "layout_mismatch", message });
}

function fits(promptTokenIds: readonly number[], incarnation: Incarnation): boolean {
  return promptTokenIds.length <= incarnation.description.blockCount * incarnation.layout.blockSize;
}
