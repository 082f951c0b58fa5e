import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { ensureTinyModel } from "@kvasir/models";
import { KvAccuracy, PlacementMode } from "@kvasir/proto";
import { makeCodecProfile } from "@kvasir/testkit/codec-profile";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { now } from "../clock.ts";
import { DEAF_METER } from "../request-meter.ts";
import { freshScope, generate, type RunningWorker, refOf } from "../testing/harness.ts";
import { SIDECAR_BINARY, startRealWorker } from "../testing/real-worker.ts";
import type { LevelTotals } from "./traffic.ts";

type RealWorker = Awaited<ReturnType<typeof startRealWorker>>;

describe.skipIf(!existsSync(SIDECAR_BINARY))("levels between real workers", () => {
  const directory = mkdtempSync(join(tmpdir(), "levels-"));
  let prefill: RealWorker;
  let decode: RealWorker;
  let borrower: RealWorker;
  /** What came to the borrower. */
  const borrowed: string[] = [];

  beforeAll(async () => {
    const model = await ensureTinyModel(fileURLToPath(new URL("../../../../.cache/models", import.meta.url)));
    const codecProfile = await makeCodecProfile({ model, kvDtype: "f32", directory });
    const requests = { ...DEAF_METER, kvTravelled: (levels: LevelTotals) => borrowed.push(...levels.keys()) };
    [prefill, decode, borrower] = await Promise.all([
      startRealWorker("prefill", "prefill", { model, codecProfile }),
      startRealWorker("decode", "decode", { model, codecProfile }),
      startRealWorker("borrower", "prefill", { model, codecProfile, requests }),
    ]);
  });
  afterAll(async () => {
    await Promise.all([prefill, decode, borrower].map((worker) => worker?.stop()));
    rmSync(directory, { recursive: true });
  });

  /** One prompt that nobody has seen, as the request says, and again for the same tenant. */
  const twice = async (kvAccuracy: KvAccuracy, isSlow = true) => {
    const tenantScope = freshScope();
    const once = () => {
      // Said before each, since transfers find out otherwise.
      if (isSlow) slowLink(decode, prefill);
      const change = { kvAccuracy };
      return generate({ prefill, decode, promptTokenCount: 200, maxTokens: 16, tenantScope, change }).result;
    };
    return [await once(), await once()] as const;
  };

  test("exact requests get the same tokens in fewer bytes; approximate KV is told of and answers nobody else", async () => {
    const raw = 200 * (decode.worker.supervisor.current?.description.kvBytesPerToken ?? 0);
    const [expected] = await twice(KvAccuracy.EXACT, false);
    expect(expected.finished).toMatchObject({ kvBytesMoved: BigInt(raw), approximatePromptTokens: 0 });

    const [lossless, again] = await twice(KvAccuracy.EXACT);
    expect(lossless.tokenIds).toEqual(expected.tokenIds);
    expect(Number(lossless.finished?.kvBytesMoved)).toBeLessThan(0.95 * raw);
    // Exact KV is kept: what decode has needs not come again.
    expect([again.tokenIds, again.finished?.kvBytesMoved]).toEqual([expected.tokenIds, 0n]);

    const [fast, other] = await twice(KvAccuracy.FAST);
    expect(fast.finished?.approximatePromptTokens).toBe(200);
    expect(Number(fast.finished?.kvBytesMoved)).toBeLessThan(0.5 * raw);
    expect(fast.tokenIds).toHaveLength(16);
    // Decode kept nothing of it, so everything comes again.
    expect(other.finished?.approximatePromptTokens).toBe(200);
    expect(Number(other.finished?.kvBytesMoved)).toBeGreaterThan(0.9 * Number(fast.finished?.kvBytesMoved));
  });

  test("KV that is fetched before a prompt is computed travels as coarsely as its request allows, and lossy KV is kept for nobody", async () => {
    const tenantScope = freshScope();
    const first = await generate({ prefill, decode, promptTokenCount: 200, tenantScope }).result;
    // It believes that computing takes for ever.
    const { meter } = borrower.worker.supervisor.current?.engine ?? {};
    Object.defineProperty(meter, "fearedPromptTokenMs", { value: 1e6 });
    const again = async (kvAccuracy: KvAccuracy) => {
      decode.worker.supervisor.current?.clearCache();
      slowLink(borrower, prefill);
      borrowed.length = 0;
      const { SPLIT } = PlacementMode;
      // Two calls, both of which are asked for before the link tells that it is fast.
      const fetch = { holder: refOf(prefill), tokenEnd: 128 };
      const placement = { mode: SPLIT, decode: refOf(decode), prefill: refOf(borrower), fetch };
      // Nothing is in time for that target.
      const change = { kvAccuracy, placement, ttftTargetMs: 1 };
      const done = await generate({ decode, promptTokenCount: 200, tenantScope, change }).result;
      const { tokenIds, cachedTokenCount, remoteTokenCount, finished } = done;
      return { tokenIds, from: [cachedTokenCount, remoteTokenCount], finished, levels: [...borrowed] };
    };
    for (let times = 0; times < 2; times++) {
      const fast = await again(KvAccuracy.FAST);
      expect([fast.from, fast.levels]).toEqual([[0, 128], ["quick"]]);
      expect(fast.finished?.approximatePromptTokens).toBe(200);
    }
    const exact = await again(KvAccuracy.EXACT);
    expect([exact.from, exact.levels]).toEqual([[0, 128], ["lossless"]]);
    expect([exact.tokenIds, exact.finished?.approximatePromptTokens]).toEqual([first.tokenIds, 0]);
    expect(await again(KvAccuracy.FAST)).toMatchObject({ tokenIds: first.tokenIds, from: [192, 0], levels: [] });
  });
});

/** Lets one worker believe that another's link is slow. */
function slowLink(own: RunningWorker, peer: RunningWorker): void {
  const book = own.worker.supervisor.current?.transfers;
  const address = peer.worker.supervisor.current?.description.transferAddresses[0] ?? "";
  const facts = { wireBytes: 100_000, rawBytes: 100_000, encodeMs: 0, decodeMs: 0 };
  for (let times = 0; times < 40; times++) book?.observe(address, undefined, new Map([[0, facts]]), 1e6, now());
}
