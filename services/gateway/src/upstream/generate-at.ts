import { type KvAccuracy, KvasirError, type RequestProgress } from "@kvasir/core";
import {
  FinishReason,
  type GenerateFinished,
  type GenerateResponse,
  type Placement,
  KvAccuracy as WireAccuracy,
} from "@kvasir/proto";
import { metadataFromContext } from "@kvasir/rpc";
import type { PreparedRequest } from "../prepare.ts";
import type { DecodeClients } from "./decode-clients.ts";
import { deadlineMs, type GenerationContext, type Sink, ttftLeftMs } from "./generation-context.ts";
import type { TransferChoice } from "./transfer-keeper.ts";

export const WIRE_ACCURACIES: Readonly<Record<KvAccuracy, WireAccuracy>> = {
  exact: WireAccuracy.EXACT,
  near: WireAccuracy.NEAR,
  fast: WireAccuracy.FAST,
};

/**
 * One attempt at a request: generates on the decode worker of a placement what `progress` lacks, and keeps `progress` true. Resolves when
 * every answer has ended, without `finished` when the gateway ended it itself. However it ends, the worker's stream is closed.
 */
export function generateAt(
  clients: DecodeClients,
  placement: Placement,
  request: PreparedRequest,
  progress: RequestProgress,
  transfer: TransferChoice,
  facts: GenerationContext,
  sink: Sink,
): Promise<GenerateFinished | undefined> {
  return new Promise((resolve, reject) => {
    const address = placement.decode?.address;
    if (address === undefined) {
      reject(new KvasirError({ reason: "internal", message: "the router placed a request without a decode worker" }));
      return;
    }
    const { sampling } = request;
    const resumed = progress.soFar().map(({ index, tokenIds, ended }) => ({
      choiceIndex: index,
      // An answer that has ended needs no tokens.
      tokenIds: ended ? [] : (tokenIds as number[]),
      ended,
    }));
    const call = clients.at(address).generate(
      {
        requestId: facts.requestId,
        promptTokenIds: request.promptTokenIds as number[],
        sampling: { ...sampling, stopTokenIds: sampling.stopTokenIds as number[] },
        placement,
        tenantScope: facts.tenantScope,
        choiceCount: request.choiceCount,
        resumed,
        kvAccuracy: WIRE_ACCURACIES[request.kvAccuracy],
        tbtTargetMs: facts.wishes.objectives.tpotMs,
        ttftTargetMs: progress.tokenCount > 0 ? 0 : ttftLeftMs(facts),
        ...transfer,
      },
      { metadata: metadataFromContext(facts.context), deadlineMs: deadlineMs(facts) },
    );
    let last = performance.now();
    let paused = false;
    let isCut = false;
    const end = (choice: number, reason: FinishReason) => {
      if (progress.end(choice)) sink.ended(choice, reason === FinishReason.STOP ? "stop" : "length", false);
    };
    const watchdog = setInterval(
      () => {
        const silent = performance.now() - last;
        if (paused || silent < facts.stallTimeoutMs) return;
        const message = `the worker sent nothing for ${Math.round(silent)} ms; try again`;
        settle(() => reject(new KvasirError({ reason: "deadline_exceeded", message })));
      },
      Math.min(1_000, facts.stallTimeoutMs),
    );
    const abort = () => settle(() => reject(facts.signal.reason));
    let settled = false;
    function settle(then: () => void): void {
      if (settled) return;
      settled = true;
      clearInterval(watchdog);
      facts.signal.removeEventListener("abort", abort);
      call.cancel();
      then();
    }
    if (facts.signal.aborted) {
      call.on("error", () => undefined);
      abort();
      return;
    }
    facts.signal.addEventListener("abort", abort, { once: true });
    call.on("error", (error) => settle(() => reject(error)));
    call.on("end", () => {
      const message = "the worker ended the stream without a result";
      settle(() => reject(new KvasirError({ reason: "unavailable", message })));
    });
    call.on("data", (response: GenerateResponse) => {
      if (settled) return;
      last = performance.now();
      const { kind } = response;
      if (kind.case === "tokens") {
        const { tokens, choiceIndex, cached } = kind.value;
        if (cached) sink.cached(cached);
        // An answer that a stop string ended goes on at the worker until the last of its siblings has ended.
        if (!progress.isOpen(choiceIndex)) return;
        progress.add(
          choiceIndex,
          tokens.map((token) => token.tokenId),
        );
        const answer = sink.tokens(tokens, choiceIndex);
        if (answer === "enough") {
          progress.end(choiceIndex);
          isCut = true;
          sink.ended(choiceIndex, "stop", true);
          if (progress.isOver) settle(() => resolve(undefined));
        } else if (answer !== "more") {
          paused = true;
          call.pause();
          void answer.then(() => {
            paused = false;
            last = performance.now();
            call.resume();
          });
        }
      } else if (kind.case === "choiceFinished") {
        end(kind.value.choiceIndex, kind.value.reason);
        if (isCut && progress.isOver) settle(() => resolve(undefined));
      } else if (kind.case === "finished") {
        const finished = kind.value;
        end(0, finished.reason);
        settle(() => resolve(finished));
      }
    });
  });
}
