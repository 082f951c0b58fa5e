import { eventsOf } from "./sse.ts";

/** What the gateway adds beside `usage` (docs/api.md). */
export interface KvasirExtension {
  readonly trace_id: string;
  readonly mode: string;
  readonly prefill_worker: string;
  readonly decode_worker: string;
  readonly predicted_ttft_ms: number;
  readonly kv_bytes_moved: number;
  readonly placement_reason: string;
  readonly timings: Readonly<Record<string, number>>;
}

export interface Answer {
  readonly text: string;
  readonly promptTokenCount: number;
  readonly completionTokenCount: number;
  readonly kvasir: KvasirExtension;
  /** As this client saw it: from before the request was sent. */
  readonly ttftMs: number;
  /** Gaps between the events of the stream after the first; one event is one step's tokens. */
  readonly gapsMs: readonly number[];
}

interface Chunk {
  readonly choices?: readonly { readonly delta?: { readonly content?: string } }[];
  readonly usage?: { readonly prompt_tokens: number; readonly completion_tokens: number };
  readonly kvasir?: KvasirExtension;
  readonly error?: { readonly message: string };
}

/** Asks over the public HTTP API and calls `onText` as the answer comes. Rejects with the server's message when it says no. */
export async function ask(
  gatewayUrl: string,
  request: object,
  onText: (text: string) => void,
  now: () => number,
): Promise<Answer> {
  const start = now();
  const response = await fetch(`${gatewayUrl}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } }),
  });
  if (!response.ok || response.body === null) throw new Error(messageOf(await response.text(), response.status));

  let text = "";
  let last: Chunk = {};
  const times: number[] = [];
  for await (const event of eventsOf(response.body)) {
    if (event === "[DONE]") break;
    const chunk = JSON.parse(event) as Chunk;
    if (chunk.error) throw new Error(chunk.error.message);
    const piece = chunk.choices?.[0]?.delta?.content;
    if (piece !== undefined) {
      times.push(now());
      text += piece;
      onText(piece);
    }
    last = { ...last, ...chunk };
  }
  if (last.usage === undefined || last.kvasir === undefined) throw new Error("the stream ended without its usage");
  return {
    text,
    promptTokenCount: last.usage.prompt_tokens,
    completionTokenCount: last.usage.completion_tokens,
    kvasir: last.kvasir,
    ttftMs: (times[0] ?? Number.NaN) - start,
    gapsMs: times.slice(1).map((time, index) => time - (times[index] ?? time)),
  };
}

function messageOf(body: string, status: number): string {
  try {
    return (JSON.parse(body) as { error: { message: string } }).error.message;
  } catch {
    return `HTTP ${status}: ${body.slice(0, 200)}`;
  }
}
