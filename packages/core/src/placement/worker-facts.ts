import type { ServiceClass } from "../admission/service-class.ts";
import type { KvAccuracy } from "../codec-level/index.ts";
import type { StepCost } from "../cost/step-cost.ts";
import { sharedBlockCount, worstCaseBlockCount } from "../scheduler/capacity.ts";
import type { KvModel } from "./pair.ts";

/** What a worker does: computes prompts, generates from KV that it pulls, or both in one engine. */
export type WorkerRole = "prefill" | "decode" | "mixed";

/** What stays true of a worker for as long as its incarnation lives. */
export interface WorkerFacts {
  readonly workerId: string;
  readonly role: WorkerRole;
  /** host:port of its gRPC services. */
  readonly address: string;
  /** Served model name. */
  readonly model: string;
  /** Layout fingerprint as hex: a digest of `kvModel`. KV moves only between equal ones. */
  readonly fingerprint: string;
  readonly kvModel: KvModel;
  /** As hex: where it is equal too, KV is bit for bit the same; block hashes begin with it. */
  readonly exactFingerprint: string;
  /** Number format of KV. It is converted where another worker has another one, and approximate then. */
  readonly kvDtype: "f32" | "f16" | "bf16";
  /** Tokens per block. */
  readonly blockSize: number;
  /** K and V of all layers for one token, in bytes. */
  readonly kvBytesPerToken: number;
  /** Blocks in its pool. */
  readonly blockCount: number;
  /** Largest prompt plus output, in tokens. */
  readonly contextLength: number;
  /** Its sidecar, as its receivers name it in what they measured of links. Absent: nobody does. */
  readonly transferAddress?: string;
}

/** How busy a worker says it is. A hint, up to a second old: a wrong value costs a slower choice, never a wrong token. */
export interface ReportedLoad {
  /** Blocks neither used nor reserved. */
  readonly freeBlockCount: number;
  readonly runningCount: number;
  readonly waitingCount: number;
  /** Prompt tokens not yet computed. */
  readonly queuedPromptTokenCount: number;
  readonly contextTokenCount: number;
  /** 0 before the first measurement. */
  readonly prefillTokensPerSecond: number;
  /** 0 before the first measurement. */
  readonly decodeStepMs: number;
  /** What its steps cost, fitted to those it ran; absent before it ran enough. */
  readonly stepCost?: StepCost;
  /** Finishes what it has, and is given nothing new. */
  readonly isDraining: boolean;
}

/** What a request's caller wants of its times. */
export interface Objectives {
  /** From arrival to the first token, in milliseconds. Absent: whenever. */
  readonly ttftMs?: number;
  /** Mean gap between tokens, in milliseconds. Absent: any. */
  readonly tbtMs?: number;
  /** What cannot be met is not refused, but served after those that can: as `flex`, and on a best effort. */
  readonly mayBeLate: boolean;
}

/** Hashes of a prompt's full blocks in one layout. */
export interface PromptHashes {
  /** Exact fingerprint of the layout, as hex. */
  readonly fingerprint: string;
  readonly blockSize: number;
  /** 16 bytes each, in order. */
  readonly hashes: Uint8Array;
}

/** What a placement must know of a request. */
export interface RequestShape {
  readonly model: string;
  readonly promptTokenCount: number;
  /** Upper bound of what will be generated, of one answer. */
  readonly maxTokens: number;
  /** Answers, which share the prompt's full blocks. Default 1. */
  readonly choiceCount?: number;
  /** For each layout that workers have. Default: nothing is known of the text. */
  readonly promptHashes?: readonly PromptHashes[];
  readonly objectives?: Objectives | undefined;
  /** Least exact KV that it may be answered from. Default `exact`. */
  readonly kvAccuracy?: KvAccuracy;
  /** Whose share of the cluster it takes, as hex; answers of one tenant are alike. */
  readonly tenant?: string;
  /** The tenant's share beside those of others. Default 1. */
  readonly tenantWeight?: number;
  /** Default `default`. */
  readonly serviceClass?: ServiceClass;
  /** Among the tenant's requests of its class; smaller goes first. Default 0. */
  readonly priority?: number;
  /** Of a conversation: goes where its last turn went, among workers that are as good. Default: of none. */
  readonly sessionId?: string;
  /** Of prompts with answers of like length, named by the caller. Default: told by the prompt's length. */
  readonly promptClass?: string;
}

/** Blocks that a request can come to hold where it is decoded: its prompt and everything it may generate. */
export function decodeBlockCount(request: RequestShape, blockSize: number): number {
  const { promptTokenCount, maxTokens, choiceCount = 1 } = request;
  const own = worstCaseBlockCount("decode", promptTokenCount, maxTokens, blockSize);
  return own + (choiceCount - 1) * (own - sharedBlockCount(promptTokenCount, blockSize));
}

/** Blocks that a request holds where only its prompt is computed. */
export function prefillBlockCount(request: RequestShape, blockSize: number): number {
  return Math.ceil(request.promptTokenCount / blockSize);
}
