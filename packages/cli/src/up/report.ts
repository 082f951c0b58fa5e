import type { Answer } from "./ask.ts";

/** What came of the question, in lines for a terminal. */
export function reportLines(answer: Answer): string[] {
  const { kvasir, gapsMs } = answer;
  const tokens = answer.completionTokenCount;
  const decodeMs = gapsMs.reduce((sum, gap) => sum + gap, 0);
  const where =
    kvasir.mode === "split"
      ? `${kvasir.prefill_worker} computed the prompt (${answer.promptTokenCount} tokens), ${kvasir.decode_worker} generated ${tokens} tokens`
      : `${kvasir.decode_worker} computed the prompt (${answer.promptTokenCount} tokens) and generated ${tokens} tokens`;
  return [
    `TTFT ${answer.ttftMs.toFixed(0)} ms (predicted ${kvasir.predicted_ttft_ms.toFixed(0)} ms)`,
    tokens > 1 && gapsMs.length > 0
      ? `TBT  ${(decodeMs / (tokens - 1)).toFixed(1)} ms mean, ${percentile(gapsMs, 99).toFixed(1)} ms p99 · ${((1000 * (tokens - 1)) / decodeMs).toFixed(1)} tokens/s`
      : "TBT  none: the answer is one token",
    where,
    kvasir.mode === "split" ? `${bytesText(kvasir.kv_bytes_moved)} of KV moved between their sidecars` : "no KV moved",
  ];
}

/** Lines to paste: curl, and OpenAI's client for Node. */
export function clientLines(gatewayUrl: string, model: string): { readonly curl: string; readonly node: string } {
  const content = "Name three rivers of Europe.";
  const body = JSON.stringify({ model, messages: [{ role: "user", content }], max_tokens: 64 });
  return {
    curl: `curl -s ${gatewayUrl}/v1/chat/completions -H 'content-type: application/json' -d '${body}'`,
    node: [
      `import OpenAI from "openai";`,
      `const client = new OpenAI({ baseURL: "${gatewayUrl}/v1", apiKey: "none" });`,
      `console.log((await client.chat.completions.create(${body})).choices[0].message.content);`,
    ].join("\n"),
  };
}

/** Nearest-rank percentile. */
export function percentile(values: readonly number[], percent: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil((percent / 100) * sorted.length) - 1)] ?? Number.NaN;
}

function bytesText(bytes: number): string {
  if (bytes < 1024) return `${bytes} B`;
  if (bytes < 2 ** 20) return `${(bytes / 1024).toFixed(1)} KiB`;
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}
