import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type LocalCluster, type ProcessHandle, startLocalCluster } from "@kvasir/cli";
import { resolveModel } from "@kvasir/models";
import { expect } from "vitest";

export const CACHE_DIR = process.env.KVASIR_CACHE ?? join(import.meta.dirname, "../../.cache");

/** KV of one token of the tiny model in bf16: 3 layers, keys and values, 2 heads of 32. */
export const TINY_KV_BYTES_PER_TOKEN = 3 * 2 * 2 * 32 * 2;

/** So many tokens' KV moved once: raw or, where the link seemed slow, lossless, which takes more than half of that. */
export function expectMoved(bytes: number, tokens: number, bytesPerToken = TINY_KV_BYTES_PER_TOKEN): void {
  expect(bytes).toBeLessThanOrEqual(tokens * bytesPerToken);
  expect(bytes).toBeGreaterThan((tokens * bytesPerToken) / 2);
}

/** Starts a program on ports that were free a moment ago; once more where another process was quicker. */
export async function onFreePorts<T>(start: () => Promise<T>): Promise<T> {
  for (let tries = 1; ; tries++) {
    try {
      return await start();
    } catch (error) {
      if (tries === 3 || !String(error).includes("address already in use")) throw error;
    }
  }
}

type ClusterOptions = Partial<Parameters<typeof startLocalCluster>[0]>;

/** A cluster of real processes with the tiny model on ports of its own. */
export async function startTiny(options: ClusterOptions = {}): Promise<LocalCluster> {
  const model = await resolveModel("tiny", CACHE_DIR, () => undefined);
  return startLocalCluster({
    model: model.directory,
    servedModelName: "tiny",
    prefill: 1,
    decode: 1,
    mixed: 0,
    port: 0,
    logDir: mkdtempSync(join(tmpdir(), "kvasir-e2e-")),
    threadsPerSidecar: 1,
    ...options,
  });
}

export function processOf(cluster: LocalCluster, kind: string): ProcessHandle {
  const found = cluster.processes.find((process) => process.kind === kind);
  if (found === undefined) throw new Error(`the cluster has no ${kind}, only ${cluster.processes.map((p) => p.kind)}`);
  return found;
}

export function workersOf(cluster: LocalCluster): readonly ProcessHandle[] {
  return cluster.processes.filter(({ kind }) => kind === "prefill" || kind === "decode" || kind === "mixed");
}

/** One sample of a process's metrics; label values in the order that Prometheus prints them. */
export async function metric(process: ProcessHandle, sample: string): Promise<number> {
  const text = await (await fetch(`http://${process.adminAddress}/metrics`)).text();
  const line = text.split("\n").find((line) => line.startsWith(`${sample} `));
  if (line === undefined) throw new Error(`${process.name} has no metric ${sample}`);
  return Number(line.slice(sample.length + 1));
}

export const blocks = (process: ProcessHandle, state: string) => metric(process, `kvasir_blocks{state="${state}"}`);

/** Nothing is left of any request: within one lease time at the latest, here within ten seconds. */
export async function expectNothingLeft(cluster: LocalCluster): Promise<void> {
  for (const worker of workersOf(cluster)) {
    for (const state of ["leased", "pinned", "orphaned", "used", "reserved"]) {
      await expect.poll(() => blocks(worker, state), { timeout: 10_000, message: `${worker.name}: ${state}` }).toBe(0);
    }
    await expect.poll(async () => (await blocks(worker, "total")) - (await blocks(worker, "free"))).toBe(0);
  }
}

export interface ChatBody {
  readonly [field: string]: unknown;
}

export function chatBody(content: string, fields: ChatBody = {}): ChatBody {
  return { model: "tiny", messages: [{ role: "user", content }], temperature: 0, max_tokens: 24, ...fields };
}

let coldCount = 0;

/** A request that names no salt gets one of its own, so that nothing of its prompt is cached: what a test sees does not hang on those before it. */
function withSalt(body: object): object {
  return "cache_salt" in body || Array.isArray(body) ? body : { ...body, cache_salt: `cold-${++coldCount}` };
}

export function post(cluster: LocalCluster, body: unknown, init: RequestInit = {}, path = "/v1/chat/completions") {
  return fetch(`${cluster.gatewayUrl}${path}`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: encoded(body),
    ...init,
  });
}

function encoded(body: unknown): string | Buffer {
  if (typeof body === "string") return body;
  if (body instanceof Uint8Array) return Buffer.from(body);
  return JSON.stringify(typeof body === "object" && body !== null ? withSalt(body) : body);
}

/** What this project's tests read of an answer. */
export interface Answer {
  readonly choices: readonly [
    { readonly message: { readonly content: string }; readonly logprobs: { readonly content: readonly unknown[] } },
  ];
  readonly usage: {
    readonly prompt_tokens: number;
    readonly completion_tokens: number;
    readonly prompt_tokens_details: { readonly cached_tokens: number };
  };
  readonly kvasir: {
    readonly trace_id: string;
    readonly mode: string;
    readonly decode_worker: string;
    readonly kv_bytes_moved: number;
    readonly cached_tokens: Readonly<Record<string, number>>;
    readonly ttft_ms: number;
    readonly approximate_prompt_tokens: number;
  };
  readonly error: { readonly message: string; readonly code: string };
}

export async function answerOf(response: Response): Promise<Answer> {
  return (await response.json()) as Answer;
}

/** A stream whose events are read one by one, so that a test can act in its middle. */
export async function openStream(cluster: LocalCluster, body: ChatBody, signal?: AbortSignal) {
  const response = await post(cluster, { ...body, stream: true }, signal ? { signal } : {});
  if (response.status !== 200) throw new Error(`${response.status}: ${await response.text()}`);
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
  if (reader === undefined) throw new Error(`${response.status}: ${await response.text()}`);
  let buffer = "";
  return {
    traceId: response.headers.get("x-kvasir-trace-id") ?? "",
    /** The next event; undefined at the end, however it came. */
    async next(): Promise<Record<string, unknown> | "done" | undefined> {
      for (;;) {
        const end = buffer.indexOf("\n\n");
        if (end >= 0) {
          const event = buffer.slice("data: ".length, end);
          buffer = buffer.slice(end + 2);
          return event === "[DONE]" ? "done" : (JSON.parse(event) as Record<string, unknown>);
        }
        const part = await reader.read().catch(() => ({ done: true, value: undefined }));
        if (part.done || part.value === undefined) return undefined;
        buffer += part.value;
      }
    },
  };
}
