import type { Candidate } from "../placement/choose-placement.ts";
import type { PolicyOutcome } from "../placement/placement-policy.ts";
import type { RequestShape } from "../placement/worker-facts.ts";

/** Conversations remembered; the one unused longest is forgotten first. */
const SESSION_MAX = 65_536;
/** Times within this share of each other, and this many milliseconds, are as good. Larger: conversations stay longer; smaller: load is spread better. */
const NEAR_SHARE = 0.05;
const NEAR_MS = 2;

/**
 * Where the last turn of each conversation went. A tie-break and no more: among workers that are as good it decides, before what they say of their
 * caches shows that they have the conversation; a hint, and what is lost with the router costs nothing else.
 */
export class SessionWorkers {
  /** Of each conversation, the workers that computed its prompt and decoded it, oldest first. */
  readonly #workers = new Map<string, string>();

  prefer(outcome: Extract<PolicyOutcome, { readonly kind: "placed" }>, request: RequestShape): PolicyOutcome {
    const workerId = this.#workers.get(nameOf(request));
    const [best, ...others] = outcome.candidates;
    if (workerId === undefined || workerOf(best) === workerId) return outcome;
    const last = others.find((candidate) => workerOf(candidate) === workerId && isNear(candidate, best));
    if (last === undefined) return outcome;
    return { kind: "placed", candidates: [last, ...outcome.candidates.filter((candidate) => candidate !== last)] };
  }

  placed(candidate: Candidate, request: RequestShape): void {
    const name = nameOf(request);
    if (name === "") return;
    this.#workers.delete(name);
    this.#workers.set(name, workerOf(candidate));
    if (this.#workers.size <= SESSION_MAX) return;
    const oldest = this.#workers.keys().next().value;
    if (oldest !== undefined) this.#workers.delete(oldest);
  }
}

/** Conversations of different tenants are different ones, whatever they are called. */
function nameOf({ tenant = "", sessionId = "" }: RequestShape): string {
  return sessionId === "" ? "" : `${tenant} ${sessionId}`;
}

/** The worker that computes the prompt. */
function workerOf({ prefill, decode }: Candidate): string {
  return (prefill ?? decode).facts.workerId;
}

function isNear(candidate: Candidate, best: Candidate): boolean {
  return (
    candidate.mode === best.mode &&
    candidate.ttftMs <= best.ttftMs * (1 + NEAR_SHARE) + NEAR_MS &&
    candidate.tbtMs <= best.tbtMs * (1 + NEAR_SHARE) + NEAR_MS &&
    candidate.prefill?.facts.kvDtype === best.prefill?.facts.kvDtype &&
    candidate.uncachedTokenCount <= best.uncachedTokenCount
  );
}
