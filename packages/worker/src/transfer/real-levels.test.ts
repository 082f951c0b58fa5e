import { execFile } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { ensureTinyModel } from "@kvasir/models";
import { KvAccuracy } from "@kvasir/proto";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { freshScope, generate, type RunningWorker } from "../testing/harness.ts";
import { SIDECAR_BINARY, startRealWorker } from "../testing/real-worker.ts";

type RealWorker = Awaited<ReturnType<typeof startRealWorker>>;

describe.skipIf(!existsSync(SIDECAR_BINARY))("levels between real workers", () => {
  const directory = mkdtempSync(join(tmpdir(), "levels-"));
  let prefill: RealWorker;
  let decode: RealWorker;

  beforeAll(async () => {
    const model = await ensureTinyModel(fileURLToPath(new URL("../../../../.cache/models", import.meta.url)));
    const codecProfile = await profileOf(model, directory);
    [prefill, decode] = await Promise.all([
      startRealWorker("prefill", "prefill", { model, codecProfile }),
      startRealWorker("decode", "decode", { model, codecProfile }),
    ]);
  });
  afterAll(async () => {
    await Promise.all([prefill, decode].map((worker) => worker?.stop()));
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
});

/** Lets one worker believe that another's link is slow. */
function slowLink(own: RunningWorker, peer: RunningWorker): void {
  const book = own.worker.supervisor.current?.transfers;
  const address = peer.worker.supervisor.current?.description.transferAddresses[0] ?? "";
  const facts = { wireBytes: 100_000, rawBytes: 100_000, encodeMs: 0, decodeMs: 0 };
  for (let times = 0; times < 40; times++) book?.observe(address, undefined, new Map([[0, facts]]), 1e6);
}

/** A codec profile from the model's own KV. */
async function profileOf(model: string, directory: string): Promise<string> {
  const items = Array.from({ length: 8 }, (_, seed) => ({
    ...{ id: `${seed}`, prefix: Array.from({ length: 120 }, (_, i) => (i * 7 + seed * 13) % 100), documents: [] },
    ...{ suffix: [1, 2], max_tokens: 2, stop_token_ids: [] },
  }));
  const [listed, out] = [join(directory, "items.jsonl"), join(directory, "tiny.kvcp")];
  writeFileSync(listed, items.map((item) => `${JSON.stringify(item)}\n`).join(""));
  const flags = ["--model", model, "--items", listed, "--out", out, "--kv-dtype", "f32", "--sensitivity-items", "0"];
  const levels = ["--levels", "quick:fast:0.1", "--kv-bytes", "4MiB", "--threads", "1", "--block-size", "16"];
  await promisify(execFile)(SIDECAR_BINARY, ["codec-profile", ...flags, ...levels]);
  return out;
}
