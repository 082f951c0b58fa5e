import type { Trace, TraceRequest } from "@kvasir/sim";
import type { ReplayRecord, Targets } from "./replay-record.ts";

export interface LiveOptions {
  /** Of a gateway, without a path. */
  readonly url: string;
  readonly model: string;
  /** Token ids that prompts are made of: from `tokenBase` on, `tokenRange` of them. */
  readonly tokenBase: number;
  readonly tokenRange: number;
  /** Prompts of another salt are others: a cluster has cached those that it has seen, which a replay would take for speed. */
  readonly salt: number;
  readonly targets: Targets | undefined;
  readonly timeoutMs: number;
}

/**
 * Sends a trace's requests at their times, whether earlier ones are answered or not (open loop), and measures at the client: from the time a
 * request was due to its first token, and from there to its last. Prompts are token ids made from the trace's prefix ids, so that what is
 * shared in the trace is shared here.
 */
export async function replayLive(trace: Trace, options: LiveOptions): Promise<ReplayRecord[]> {
  const start = performance.now();
  return Promise.all(
    trace.requests.map(async (request, index) => {
      const due = start + request.arrivalMs;
      await new Promise((resolve) => setTimeout(resolve, Math.max(0, due - performance.now())));
      return send(index, request, trace.prefixBlockSize, due, options);
    }),
  );
}

async function send(
  index: number,
  request: TraceRequest,
  prefixBlockSize: number,
  due: number,
  options: LiveOptions,
): Promise<ReplayRecord> {
  const { url, model, targets, timeoutMs } = options;
  const base = {
    arrivalMs: request.arrivalMs,
    promptTokenCount: request.promptTokenCount,
    requestId: "",
    prefillWorker: "",
    worker: "",
    reason: "",
  };
  const nothing = { ttftMs: Number.NaN, tpotMs: 0, tokenCount: 0 };
  let requestId = "";
  try {
    const response = await fetch(`${url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      signal: AbortSignal.timeout(timeoutMs),
      body: JSON.stringify({
        model,
        prompt: promptTokens(index, request, prefixBlockSize, options),
        max_tokens: request.outputTokenCount,
        ignore_eos: true,
        stream: true,
        stream_options: { include_usage: true },
        ...(targets === undefined ? {} : { kvasir: { slo: { ttft_ms: targets.ttftMs, tpot_ms: targets.tpotMs } } }),
      }),
    });
    requestId = response.headers.get("x-request-id") ?? "";
    if (!response.ok || response.body === null) {
      const outcome = response.status === 429 || response.status === 503 ? "refused" : "failed";
      return { ...base, ...nothing, requestId, outcome, reason: (await response.text()).slice(0, 300) };
    }
    return { ...base, requestId, ...(await readStream(response.body, due)) };
  } catch (error) {
    return { ...base, ...nothing, requestId, outcome: "failed", reason: String(error) };
  }
}

/** What is read of an event of the stream. */
interface GatewayEvent {
  readonly choices?: readonly { readonly text?: string }[];
  readonly usage?: { readonly completion_tokens?: number } | null;
  /** Beside the usage: how the request was placed. */
  readonly kvasir?: {
    readonly prefill_worker?: string;
    readonly decode_worker?: string;
    readonly placement_reason?: string;
  };
}

async function readStream(
  body: ReadableStream<Uint8Array>,
  due: number,
): Promise<Pick<ReplayRecord, "outcome" | "ttftMs" | "tpotMs" | "tokenCount" | "prefillWorker" | "worker" | "reason">> {
  let firstAt = Number.NaN;
  let lastAt = Number.NaN;
  let tokenCount = 0;
  let isDone = false;
  let rest = "";
  let placed: GatewayEvent["kvasir"];
  const decoder = new TextDecoder();
  for await (const part of body) {
    const now = performance.now();
    const lines = (rest + decoder.decode(part, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      if (line.trim() === "data: [DONE]") isDone = true;
      if (!line.startsWith("data: {")) continue;
      const event = JSON.parse(line.slice(6)) as GatewayEvent;
      tokenCount = event.usage?.completion_tokens ?? tokenCount;
      placed = event.kvasir ?? placed;
      if ((event.choices?.length ?? 0) === 0) continue;
      if (Number.isNaN(firstAt)) firstAt = now;
      lastAt = now;
    }
  }
  const tpotMs = tokenCount > 1 ? (lastAt - firstAt) / (tokenCount - 1) : 0;
  const isFinished = isDone && !Number.isNaN(firstAt);
  return {
    ...{ outcome: isFinished ? "finished" : "failed", ttftMs: firstAt - due, tpotMs, tokenCount },
    prefillWorker: placed?.prefill_worker ?? "",
    worker: placed?.decode_worker ?? "",
    reason: placed?.placement_reason ?? "",
  };
}

function promptTokens(index: number, request: TraceRequest, prefixBlockSize: number, options: LiveOptions): number[] {
  const { tokenBase, tokenRange, salt } = options;
  return Array.from({ length: request.promptTokenCount }, (_, position) => {
    const prefixId = prefixBlockSize > 0 ? request.prefixIds[Math.floor(position / prefixBlockSize)] : undefined;
    const seed =
      Math.imul(prefixId === undefined ? ~index : prefixId + 1, 0x9e3779b1) ^
      Math.imul(position + 1, 0x85ebca6b) ^
      Math.imul(salt, 0xc2b2ae35);
    return tokenBase + (((seed ^ (seed >>> 15)) >>> 0) % tokenRange);
  });
}
