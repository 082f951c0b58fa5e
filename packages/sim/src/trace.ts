import { randomOf } from "./random.ts";

/** One request of a trace. */
export interface TraceRequest {
  /** Since the trace's beginning. */
  readonly arrivalMs: number;
  readonly promptTokenCount: number;
  readonly outputTokenCount: number;
  /** One id for each `blockSize` tokens of the prompt, the last may be partial; equal ids mean equal prompts up to there. Empty: nothing is shared. */
  readonly prefixIds: readonly number[];
  readonly tenant: string;
}

export interface Trace {
  readonly name: string;
  /** In order of arrival. */
  readonly requests: readonly TraceRequest[];
  /** Tokens that one of the `prefixIds` stands for. */
  readonly prefixBlockSize: number;
}

export type TraceFormat = "azure" | "mooncake" | "burstgpt" | "kvasir";

/** Which of the known formats a trace's text has; undefined for none. */
export function traceFormat(text: string): TraceFormat | undefined {
  const firstLine = text.slice(0, text.indexOf("\n")).trim();
  if (firstLine.startsWith("TIMESTAMP,")) return "azure";
  if (firstLine.startsWith("Timestamp,")) return "burstgpt";
  if (firstLine.includes('"input_length"')) return "mooncake";
  return firstLine.includes('"arrivalMs"') ? "kvasir" : undefined;
}

/**
 * Reads a trace: Azure's LLM inference traces (CSV `TIMESTAMP,ContextTokens,GeneratedTokens`), Mooncake's (JSON lines `timestamp`,
 * `input_length`, `output_length`, `hash_ids` of 512 tokens), BurstGPT's (CSV with `Timestamp`, `Request tokens`, `Response tokens`), or JSON lines
 * of `TraceRequest`. Arrivals that fall on one instant because the trace's clock is coarse are spread over the time to the next one, by `seed`.
 */
export function parseTrace(name: string, text: string, seed = 1): Trace {
  const format = traceFormat(text);
  const lines = text.split("\n").filter((line) => line.trim() !== "");
  switch (format) {
    case "azure":
      return finish(name, lines.slice(1).map(azureRow), 0, seed);
    case "burstgpt":
      return finish(name, burstRows(lines), 0, seed);
    case "mooncake":
      return finish(name, lines.map(mooncakeRow), 512, seed);
    case "kvasir": {
      const rows = lines.map((line) => JSON.parse(line) as TraceRequest);
      return finish(name, rows, 512, seed);
    }
    default:
      throw new Error(
        `trace ${name} begins with ${JSON.stringify(lines[0]?.slice(0, 80))}; use Azure's, BurstGPT's or Mooncake's columns, or JSON lines with arrivalMs, promptTokenCount, outputTokenCount`,
      );
  }
}

/** The same requests, `factor` times as fast. */
export function scaleRate(trace: Trace, factor: number): Trace {
  return { ...trace, requests: trace.requests.map((r) => ({ ...r, arrivalMs: r.arrivalMs / factor })) };
}

/** Requests `from` to `to`, from the time of the first of them. */
export function sliceTrace(trace: Trace, from: number, to: number): Trace {
  const requests = trace.requests.slice(from, to);
  const start = requests[0]?.arrivalMs ?? 0;
  return { ...trace, requests: requests.map((r) => ({ ...r, arrivalMs: r.arrivalMs - start })) };
}

/** Requests per second. */
export function rateOf({ requests }: Trace): number {
  const spanMs = (requests.at(-1)?.arrivalMs ?? 0) - (requests[0]?.arrivalMs ?? 0);
  return spanMs > 0 ? (requests.length - 1) / (spanMs / 1_000) : 0;
}

function finish(name: string, rows: readonly TraceRequest[], prefixBlockSize: number, seed: number): Trace {
  const usable = rows.filter((row) => row.promptTokenCount > 0 && row.outputTokenCount > 0);
  const sorted = [...usable].sort((a, b) => a.arrivalMs - b.arrivalMs);
  const start = sorted[0]?.arrivalMs ?? 0;
  return { name, requests: spread(sorted, randomOf(seed), start), prefixBlockSize };
}

/** Requests of one instant get random places before the next instant. */
function spread(rows: readonly TraceRequest[], random: () => number, start: number): TraceRequest[] {
  const found: TraceRequest[] = [];
  for (let from = 0; from < rows.length; ) {
    let to = from + 1;
    const at = rows[from]!.arrivalMs;
    while (to < rows.length && rows[to]!.arrivalMs === at) to++;
    const span = to < rows.length ? rows[to]!.arrivalMs - at : 0;
    const places = Array.from({ length: to - from }, () => (to - from === 1 ? 0 : random() * span)).sort(
      (a, b) => a - b,
    );
    for (let index = from; index < to; index++) {
      found.push({ ...rows[index]!, arrivalMs: at - start + places[index - from]! });
    }
    from = to;
  }
  return found;
}

function azureRow(line: string): TraceRequest {
  const [timestamp = "", context, generated] = line.split(",");
  // Seven digits of a second; Date reads three.
  const fraction = Number(`0.${timestamp.split(".")[1] ?? "0"}`);
  const seconds = Date.parse(`${timestamp.split(".")[0]?.replace(" ", "T")}Z`) / 1_000 + fraction;
  return request(seconds * 1_000, Number(context), Number(generated), []);
}

function mooncakeRow(line: string): TraceRequest {
  const row = JSON.parse(line) as {
    timestamp: number;
    input_length: number;
    output_length: number;
    hash_ids: number[];
  };
  return request(row.timestamp, row.input_length, row.output_length, row.hash_ids);
}

function burstRows(lines: readonly string[]): TraceRequest[] {
  const header = (lines[0] ?? "").split(",");
  const column = (title: string) => header.indexOf(title);
  return lines.slice(1).map((line) => {
    const cells = line.split(",");
    const cell = (title: string) => Number(cells[column(title)]);
    return request(cell("Timestamp") * 1_000, cell("Request tokens"), cell("Response tokens"), []);
  });
}

function request(
  arrivalMs: number,
  promptTokenCount: number,
  outputTokenCount: number,
  prefixIds: readonly number[],
): TraceRequest {
  return { arrivalMs, promptTokenCount, outputTokenCount, prefixIds, tenant: "trace" };
}
