import type { IncomingHttpHeaders } from "node:http";
import { RequestError } from "./http/openai-error.ts";
import type { SloDefaults } from "./policies.ts";

/** What a client wants of its request's times; 0: nothing is wanted. */
export interface RequestObjectives {
  /** From arrival here to the first token. */
  readonly ttftMs: number;
  /** Mean gap between tokens. */
  readonly tpotMs: number;
  /** A request that cannot meet them is served late instead of refused. */
  readonly mayBeLate: boolean;
}

/** Longest time that can be asked for. */
const TARGET_MAX_MS = 3_600_000;

/** The body's `kvasir.slo`. */
export interface SloField {
  readonly ttft_ms?: number | null | undefined;
  readonly tpot_ms?: number | null | undefined;
  readonly on_miss?: "reject" | "best_effort" | null | undefined;
}

/**
 * Targets of a request: each from its body, else from its headers (`x-slo-ttft-ms`, `x-slo-tpot-ms`, `x-slo-on-miss`, or with llm-d's prefix
 * `x-llm-d-slo-…`), else from the first of the defaults that has one. Throws RequestError for a header that says nothing of the kind.
 */
export function objectivesOf(
  headers: IncomingHttpHeaders,
  body: SloField | null | undefined,
  defaults: readonly SloDefaults[],
): RequestObjectives {
  const preset = <K extends keyof SloDefaults>(name: K) => defaults.find((slo) => slo[name] !== undefined)?.[name];
  return {
    ttftMs: body?.ttft_ms ?? msFromHeaders(headers, "ttft") ?? preset("ttft_ms") ?? 0,
    tpotMs: body?.tpot_ms ?? msFromHeaders(headers, "tpot") ?? preset("tpot_ms") ?? 0,
    mayBeLate: (body?.on_miss ?? onMissFromHeaders(headers) ?? preset("on_miss")) === "best_effort",
  };
}

function msFromHeaders(headers: IncomingHttpHeaders, what: "ttft" | "tpot"): number | undefined {
  const found = header(headers, `${what}-ms`);
  if (found === undefined) return undefined;
  const value = Number(found.text);
  if (Number.isFinite(value) && value > 0 && value <= TARGET_MAX_MS) return value;
  throw wrong(found, `milliseconds, more than 0 and at most ${TARGET_MAX_MS}`);
}

function onMissFromHeaders(headers: IncomingHttpHeaders): "reject" | "best_effort" | undefined {
  const found = header(headers, "on-miss");
  if (found === undefined || found.text === "reject" || found.text === "best_effort") return found?.text as "reject";
  throw wrong(found, "reject or best_effort");
}

interface FoundHeader {
  readonly name: string;
  readonly text: string;
}

function header(headers: IncomingHttpHeaders, what: string): FoundHeader | undefined {
  for (const name of [`x-slo-${what}`, `x-llm-d-slo-${what}`]) {
    const text = headers[name];
    if (text !== undefined) return { name, text: String(text) };
  }
  return undefined;
}

function wrong({ name, text }: FoundHeader, right: string): RequestError {
  const message = `header ${name} is ${JSON.stringify(text)}; use ${right}`;
  return new RequestError(message, { param: name, code: "invalid_value" });
}
