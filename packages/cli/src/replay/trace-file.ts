import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { gunzipSync } from "node:zlib";
import { parseTrace, scaleRate, sliceTrace, type Trace } from "@kvasir/sim";

export interface TraceSelection {
  readonly file: string;
  /** Multiple of the trace's rate. */
  readonly rate: number;
  /** Requests taken from the beginning; 0: all. */
  readonly count: number;
  /** Multiple of all lengths. */
  readonly lengths: number;
}

/** Reads a trace file, gzipped or not, and takes from it what is asked for. */
export function readTrace({ file, rate, count, lengths }: TraceSelection): Trace {
  const bytes = readFileSync(file);
  const text = (file.endsWith(".gz") ? gunzipSync(bytes) : bytes).toString("utf8");
  const whole = parseTrace(basename(file), text);
  const trace = scaleRate(count > 0 ? sliceTrace(whole, 0, count) : whole, rate);
  if (lengths === 1) return trace;
  const scaled = (tokens: number) => Math.max(1, Math.round(tokens * lengths));
  return {
    ...trace,
    // A block of the trace becomes a shorter one: shares of prompts stay what they are.
    prefixBlockSize: trace.prefixBlockSize === 0 ? 0 : scaled(trace.prefixBlockSize),
    requests: trace.requests.map((request) => ({
      ...request,
      promptTokenCount: scaled(request.promptTokenCount),
      outputTokenCount: scaled(request.outputTokenCount),
    })),
  };
}
