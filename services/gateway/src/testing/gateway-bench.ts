import { tmpdir } from "node:os";
import { join } from "node:path";
import { ensureTinyModel } from "@kvasir/models";
import { startTelemetry, type Telemetry } from "@kvasir/telemetry";
import { loadModelFacts, loadTokenizer } from "@kvasir/tokenizer";
import OpenAI from "openai";
import { createMetrics } from "../metrics.ts";
import { NO_POLICIES } from "../policies.ts";
import { longestTokenBytes, type ServedModel } from "../prepare.ts";
import { RunningRequests } from "../running-requests.ts";
import { buildServer, type ServerDeps } from "../server.ts";
import { DecodeClients } from "../upstream/decode-clients.ts";
import { RouterLink } from "../upstream/router-link.ts";
import { type FakeRouterOptions, type Script, startFakeUpstream } from "./fake-upstream.ts";

/** Gateways over scripted upstreams, and the tiny model behind them. */
export class GatewayBench {
  readonly model: ServedModel;
  readonly telemetry: Telemetry;
  #closers: (() => Promise<unknown>)[] = [];

  constructor(model: ServedModel, telemetry: Telemetry) {
    this.model = model;
    this.telemetry = telemetry;
  }

  static async create(): Promise<GatewayBench> {
    const telemetry = startTelemetry({ service: "gateway", instanceId: "test", logLevel: "silent" });
    const directory = await ensureTinyModel(join(tmpdir(), "kvasir-gateway-test"));
    const tokenizer = await loadTokenizer(directory);
    const facts = await loadModelFacts(directory);
    const longest = longestTokenBytes(tokenizer);
    return new GatewayBench(
      { name: "tiny", tokenizer, facts, createdAtUnixS: 1, longestTokenBytes: longest },
      telemetry,
    );
  }

  async start(scripts: readonly Script[], options: Partial<ServerDeps> & FakeRouterOptions = {}) {
    const upstream = await startFakeUpstream(scripts, options);
    const router = new RouterLink(upstream.state as never);
    const decode = new DecodeClients();
    this.telemetry.registry.clear();
    const running = new RunningRequests();
    const server = buildServer({
      model: this.model,
      upstream: { router, decode },
      telemetry: this.telemetry,
      metrics: createMetrics(this.telemetry.registry),
      running,
      policies: NO_POLICIES,
      slo: {},
      tenantSecret: "test",
      // Upstream and client share this process's time: what a test does not wait for is far away.
      requestTimeoutMs: 60_000,
      stallTimeoutMs: 20_000,
      resumeTimeoutMs: 20_000,
      bodyLimitBytes: 100_000,
      isReady: () => ({ ready: router.cluster?.ready ?? false }),
      refresh: () => router.refresh(),
      ...options,
    });
    const url = await server.listen({ host: "127.0.0.1", port: 0 });
    this.#closers.push(async () => {
      const closed = server.close();
      server.server.closeAllConnections();
      await closed;
      router.close();
      decode.close();
      await upstream.close();
    });
    return {
      url,
      upstream,
      router,
      running,
      server,
      openai: new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 }),
    };
  }

  /** The tiny vocabulary's bytes follow its three special tokens: a character is one token. */
  tokensOf(text: string): number[] {
    const ids: number[] = [];
    for (const byte of new TextEncoder().encode(text)) {
      const bytes = Array.from({ length: 256 }, (_, i) => i + 3);
      const id = bytes.find((candidate) => this.model.tokenizer.tokenBytes(candidate)[0] === byte);
      if (id !== undefined) ids.push(id);
    }
    return ids;
  }

  /** Closes what was started since the last time. */
  async reset(): Promise<void> {
    for (const close of this.#closers.reverse()) await close();
    this.#closers = [];
  }
}

/** One batch for each token. */
export const each = (ids: readonly number[]): number[][] => ids.map((id) => [id]);

export function post(url: string, body: object, headers: Record<string, string> = {}): Promise<Response> {
  return fetch(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
  });
}
