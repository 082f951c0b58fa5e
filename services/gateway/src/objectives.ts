import type { IncomingHttpHeaders } from "node:http";
import { RequestError } from "./http/openai-error.ts";

/** What a client wants of its request's times, or this gateway for all that say nothing; 0: nothing is wanted. */
export interface RequestObjectives {
  /** From arrival here to the first token. */
  readonly ttftMs: number;
  /** Mean gap between tokens. */
  readonly tpotMs: number;
  /** A request that cannot meet them is served late instead of refused. */
  readonly mayBeLate: boolean;
}

export const NO_OBJECTIVES: RequestObjectives = { ttftMs: 0, tpotMs: 0, mayBeLate: false };

/** Longest time that can be asked for. */
const TARGET_MAX_MS = 3_600_000;

/** The body's `kvasir.slo`. */
export interface SloField {
  readonly ttft_ms?: number | null | undefined;
  readonly tpot_ms?: number | null | undefined;
  readonly may_be_late?: boolean | null | undefined;
}

/**
 * Targets of a request: from its body, else from its headers (`x-slo-ttft-ms`, `x-slo-tpot-ms`, or with llm-d's prefix `x-llm-d-slo-…`), else
 * the default. Throws RequestError for a header that is no positive number of milliseconds.
 */
export function objectivesOf(
  headers: IncomingHttpHeaders,
  body: SloField | null | undefined,
  fallback: RequestObjectives,
): RequestObjectives {
  return {
    ttftMs: body?.ttft_ms ?? fromHeaders(headers, "ttft") ?? fallback.ttftMs,
    tpotMs: body?.tpot_ms ?? fromHeaders(headers, "tpot") ?? fallback.tpotMs,
    mayBeLate: body?.may_be_late ?? fallback.mayBeLate,
  };
}

function fromHeaders(headers: IncomingHttpHeaders, what: "ttft" | "tpot"): number | undefined {
  for (const name of [`x-slo-${what}-ms`, `x-llm-d-slo-${what}-ms`]) {
    const text = headers[name];
    if (text === undefined) continue;
    const value = Number(text);
    if (Number.isFinite(value) && value > 0 && value <= TARGET_MAX_MS) return value;
    const message = `header ${name} is ${JSON.stringify(text)}; use milliseconds, more than 0 and at most ${TARGET_MAX_MS}`;
    throw new RequestError(message, { param: name, code: "invalid_value" });
  }
  return undefined;
}
