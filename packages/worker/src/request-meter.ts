import type { ErrorReason } from "@kvasir/core";
import { Counter, Histogram, type Registry } from "prom-client";
import type { LevelTotals } from "./transfer/traffic.ts";

/** How a generation ended on this worker. */
export type GenerationOutcome = "stop" | "length" | "abort" | "error";

/**
 * How a hand-over ended. Decode: `joined`, `finished` when its first token was its last, `tail` when the rest of the prompt was computed here, `local_hit` when that was so because nearly all of it was cached. Prefill: `received`, `closed` when decode wanted no
 * more of it. Else why it failed.
 */
export type HandoverOutcome = "joined" | "finished" | "tail" | "local_hit" | "received" | "closed" | ErrorReason;

/** Who had KV that was fetched before a prompt was computed. */
export type FetchSource = "worker" | "store";

/** What requests tell as they go. Called on hot paths; must be cheap and never throw. */
export interface RequestMeter {
  /** The first token of a request that begins here, after its arrival at this worker. */
  firstToken(seconds: number): void;
  /** A later token, after the one before it. */
  nextToken(gapSeconds: number): void;
  /** The request got its blocks here, and a place in the device's queue. */
  queued(seconds: number): void;
  /** A prompt was computed here, from its first chunk to its last. */
  prefilled(seconds: number): void;
  generated(outcome: GenerationOutcome, facts: { readonly seconds: number; readonly decodeSeconds: number }): void;
  /** A hand-over's first own step after its first token: what the client may notice of it. */
  handedOver(seconds: number): void;
  handoverEnded(side: "prefill" | "decode", outcome: HandoverOutcome): void;
  /** A pull of KV into this worker ended; `seconds` without waiting for the source to compute. */
  transferEnded(outcome: HandoverOutcome, facts: { readonly bytes: number; readonly seconds: number }): void;
  /** What a pull that was complete brought at each level. */
  kvTravelled(levels: LevelTotals): void;
  /** A level could not be had between two sidecars, and raw KV was asked for instead. */
  codecFellBack(): void;
  /** Tokens whose KV is computed again, because the worker that had it is lost to the request. */
  recomputed(tokenCount: number): void;
  /** A prompt is about to be computed here: how much of it was cached. */
  lookedUp(facts: { readonly promptTokenCount: number; readonly cachedTokenCount: number }): void;
  /** KV of a prompt was fetched from a worker or a store to be gone on from: `complete`, `late`, or why it failed. */
  prefixFetched(
    source: FetchSource,
    outcome: string,
    facts: { readonly tokenCount: number; readonly bytes: number },
  ): void;
  /** Of a prompt that is computed elsewhere, what was cached here and need not travel. */
  fetchSpared(tokenCount: number): void;
}

const HANDOVER_SECONDS = [5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5];
const TRANSFER_SECONDS = [1e-4, 5e-4, 1e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

/** `RequestMeter` under our own names; `vllm` is told what its names cover. */
export function requestMeter(registry: Registry, vllm: VllmMeter): RequestMeter {
  const registers = [registry];
  const handovers = new Counter({
    name: "kvasir_handovers_total",
    help: "Hand-overs that ended, as this side saw it: joined or received, finished or closed (no more was wanted), or why it failed",
    labelNames: ["side", "outcome"],
    registers,
  });
  const handover = new Histogram({
    name: "kvasir_handover_seconds",
    help: "From the first token to the request's first own step on the decode worker",
    buckets: HANDOVER_SECONDS,
    registers,
  });
  const transfers = new Counter({
    name: "kvasir_transfers_total",
    help: "Pulls of KV into this worker that ended, by outcome as in kvasir_handovers_total",
    labelNames: ["outcome"],
    registers,
  });
  for (const outcome of ["joined", "finished", "tail", "unavailable", "lease_expired", "digest_mismatch", "cancelled"])
    transfers.inc({ outcome }, 0);
  const transferBytes = new Counter({
    name: "kvasir_transfer_bytes_total",
    help: "KV bytes of pulls that ended, whatever their outcome",
    registers,
  });
  const levelBytes = new Counter({
    name: "kvasir_transfer_level_bytes_total",
    help: "KV bytes of complete pulls by codec level: as they travelled (wire), and of the elements that they stand for (raw)",
    labelNames: ["level", "bytes"],
    registers,
  });
  for (const bytes of ["wire", "raw"]) levelBytes.inc({ level: "raw", bytes }, 0);
  const fallbacks = new Counter({
    name: "kvasir_codec_fallbacks_total",
    help: "Pulls that asked for raw KV because the source could not have the level that was chosen",
    registers,
  });
  const transfer = new Histogram({
    name: "kvasir_transfer_seconds",
    help: "Time on the wire of pulls that went well, without waiting for the source to compute",
    buckets: TRANSFER_SECONDS,
    registers,
  });
  const reprefills = new Counter({
    name: "kvasir_reprefills_total",
    help: "Requests whose KV is computed again because the worker that had it was lost to them",
    registers,
  });
  const reprefilledTokens = new Counter({
    name: "kvasir_reprefilled_tokens_total",
    help: "Tokens of prompts and of output so far in kvasir_reprefills_total",
    registers,
  });
  const queriedTokens = new Counter({
    name: "kvasir_prefix_queried_tokens_total",
    help: "Tokens of prompts that were looked up in the prefix cache before they were computed here",
    registers,
  });
  const hitTokens = new Counter({
    name: "kvasir_prefix_hit_tokens_total",
    help: "Tokens whose KV was in the prefix cache, by what that spared: computing them here, or fetching them",
    labelNames: ["spared"],
    registers,
  });
  for (const spared of ["compute", "fetch"]) hitTokens.inc({ spared }, 0);
  const fetches = new Counter({
    name: "kvasir_prefix_fetches_total",
    help: "Fetches of cached KV from a worker or a store before a prompt was computed here: complete, late (computing is quicker), or why one failed",
    labelNames: ["source", "outcome"],
    registers,
  });
  for (const outcome of ["complete", "late", "lease_expired", "unavailable", "stale_epoch"])
    for (const source of ["worker", "store"]) fetches.inc({ source, outcome }, 0);
  const fetchedTokens = new Counter({
    name: "kvasir_prefix_fetched_tokens_total",
    help: "Tokens that came with kvasir_prefix_fetches_total and were not computed",
    labelNames: ["source"],
    registers,
  });
  const fetchedBytes = new Counter({
    name: "kvasir_prefix_fetched_bytes_total",
    help: "KV bytes of kvasir_prefix_fetches_total",
    labelNames: ["source"],
    registers,
  });
  for (const source of ["worker", "store"]) {
    fetchedTokens.inc({ source }, 0);
    fetchedBytes.inc({ source }, 0);
  }
  return {
    ...vllm,
    prefixFetched(source, outcome, { tokenCount, bytes }) {
      fetches.inc({ source, outcome });
      fetchedTokens.inc({ source }, tokenCount);
      fetchedBytes.inc({ source }, bytes);
    },
    lookedUp(facts) {
      vllm.lookedUp(facts);
      queriedTokens.inc(facts.promptTokenCount);
      hitTokens.inc({ spared: "compute" }, facts.cachedTokenCount);
    },
    fetchSpared: (tokenCount) => hitTokens.inc({ spared: "fetch" }, tokenCount),
    handedOver: (seconds) => handover.observe(seconds),
    handoverEnded: (side, outcome) => handovers.inc({ side, outcome }),
    transferEnded(outcome, { bytes, seconds }) {
      transfers.inc({ outcome });
      transferBytes.inc(bytes);
      if (outcome === "joined") transfer.observe(seconds);
    },
    kvTravelled(levels) {
      for (const [level, { wireBytes, rawBytes }] of levels) {
        levelBytes.inc({ level, bytes: "wire" }, wireBytes);
        levelBytes.inc({ level, bytes: "raw" }, rawBytes);
      }
    },
    codecFellBack: () => fallbacks.inc(),
    recomputed(tokenCount) {
      reprefills.inc();
      reprefilledTokens.inc(tokenCount);
    },
  };
}

/** The part of a meter that has a name in vLLM. */
export type VllmMeter = Pick<
  RequestMeter,
  "firstToken" | "nextToken" | "queued" | "prefilled" | "generated" | "lookedUp"
>;

/** For workers whose metrics nobody reads. */
export const DEAF_METER: RequestMeter = {
  firstToken: () => undefined,
  nextToken: () => undefined,
  queued: () => undefined,
  prefilled: () => undefined,
  generated: () => undefined,
  handedOver: () => undefined,
  handoverEnded: () => undefined,
  transferEnded: () => undefined,
  kvTravelled: () => undefined,
  codecFellBack: () => undefined,
  recomputed: () => undefined,
  lookedUp: () => undefined,
  prefixFetched: () => undefined,
  fetchSpared: () => undefined,
};
