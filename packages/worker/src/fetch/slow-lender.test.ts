import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { ensureTinyModel } from "@kvasir/models";
import { KvAccuracy, PlacementMode } from "@kvasir/proto";
import { makeCodecProfile } from "@kvasir/testkit/codec-profile";
import { type Link, startLink } from "@kvasir/testkit/link";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { DEAF_METER } from "../request-meter.ts";
import { freshScope, generate, refOf } from "../testing/harness.ts";
import { eventually } from "../testing/quiet.ts";
import { SIDECAR_BINARY, startRealWorker } from "../testing/real-worker.ts";
import type { LevelTotals } from "../transfer/traffic.ts";

type RealWorker = Awaited<ReturnType<typeof startRealWorker>>;

const LENDER_HOST = "127.0.0.12";
const PROMPT_TOKENS = 330;
const LENT_TOKENS = 320;
const AS_FAST_AS_IT_CAN = Number.POSITIVE_INFINITY;

describe.skipIf(!existsSync(SIDECAR_BINARY))("a lender behind a link that grows slow", () => {
  const directory = mkdtempSync(join(tmpdir(), "slow-lender-"));
  const fetches: { readonly outcome: string; readonly tokenCount: number }[] = [];
  const levels = new Set<string>();
  let lender: RealWorker;
  let borrower: RealWorker;
  let link: Link;

  beforeAll(async () => {
    const model = await ensureTinyModel(fileURLToPath(new URL("../../../../.cache/models", import.meta.url)));
    const codecProfile = await makeCodecProfile({ model, kvDtype: "f32", directory });
    const port = await freePort();
    link = await startLink(LENDER_HOST, [port]);
    const requests = {
      ...DEAF_METER,
      prefixFetched: (_: string, outcome: string, { tokenCount }: { readonly tokenCount: number }) =>
        void fetches.push({ outcome, tokenCount }),
      kvTravelled: (totals: LevelTotals) => {
        for (const name of totals.keys()) levels.add(name);
      },
    };
    const behindLink = { transferListen: `127.0.0.1:${port}`, advertiseHost: LENDER_HOST };
    [lender, borrower] = await Promise.all([
      startRealWorker("lender", "mixed", { model, codecProfile, ...behindLink }),
      startRealWorker("borrower", "mixed", { model, codecProfile, requests }),
    ]);
  });
  afterAll(async () => {
    await Promise.all([lender, borrower].map((worker) => worker?.stop()));
    await link?.close();
    rmSync(directory, { recursive: true });
  });

  /** The lender answers a prompt, and the borrower the same one with what the lender has of it, over a link as slow as that. */
  async function borrowed(bytesPerSecond: number, change: { kvAccuracy?: KvAccuracy; ttftTargetMs?: number } = {}) {
    const tenantScope = freshScope();
    const common = { tenantScope, promptTokenCount: PROMPT_TOKENS, maxTokens: 8 };
    const expected = await generate({ ...common, decode: lender }).result;
    fetches.length = 0;
    levels.clear();
    link.pace(bytesPerSecond);
    const fetch = { holder: refOf(lender), tokenEnd: LENT_TOKENS };
    const placement = { mode: PlacementMode.AGGREGATED, decode: refOf(borrower), fetch };
    const answer = await generate({ ...common, decode: borrower, change: { placement, ...change } }).result;
    link.pace(AS_FAST_AS_IT_CAN);
    expect(answer.error).toBeUndefined();
    await eventually(() => {
      const { used, reserved, orphaned } = borrower.worker.supervisor.current?.audit() ?? {};
      expect({ used, reserved, orphaned }).toEqual({ used: 0, reserved: 0, orphaned: 0 });
      borrower.worker.supervisor.current?.engine.scheduler.checkInvariants();
    });
    return { answer, expected };
  }

  test("what is late on the link when the device comes to it is computed, with the same tokens", async () => {
    // The first prompt tells how quickly this device computes.
    await generate({ decode: borrower, promptTokenCount: PROMPT_TOKENS }).result;
    const { answer, expected } = await borrowed(20_000);
    expect(answer.tokenIds).toEqual(expected.tokenIds);
    expect(fetches).toMatchObject([{ outcome: "late" }]);
    expect(fetches[0]?.tokenCount).toBeLessThan(LENT_TOKENS);
  });

  test("what was begun raw is asked for again at a denser level, where the request allows it", async () => {
    await borrower.worker.supervisor.current?.clearCache();
    const { meter } = borrower.worker.supervisor.current?.engine ?? {};
    Object.defineProperty(meter, "fearedPromptTokenMs", { value: 1e6, configurable: true });
    // What is known of the link by now is that it is slow: it is learnt anew that it is fast.
    for (let times = 0; times < 3; times++) await borrowed(AS_FAST_AS_IT_CAN);
    const exact = await borrowed(400_000, { ttftTargetMs: 1_200 });
    expect([exact.answer.tokenIds, [...levels].filter((name) => name === "quick")]).toEqual([
      exact.expected.tokenIds,
      [],
    ]);
    for (let times = 0; times < 3; times++) await borrowed(AS_FAST_AS_IT_CAN);
    const { answer } = await borrowed(400_000, { kvAccuracy: KvAccuracy.FAST, ttftTargetMs: 1_200 });
    expect(fetches).toEqual([{ outcome: "complete", tokenCount: LENT_TOKENS }]);
    expect([...levels]).toContain("quick");
    expect(answer.finished?.approximatePromptTokens).toBeGreaterThan(0);
  });
});

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (address === null || typeof address === "string") throw new Error("a TCP server has no port");
  return address.port;
}
