import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { ensureTinyModel } from "@kvasir/models";
import { SwapDirection } from "@kvasir/proto";
import { expect, test } from "vitest";
import { freshScope, generate } from "../testing/harness.ts";
import { SIDECAR_BINARY, startRealWorker } from "../testing/real-worker.ts";

test.skipIf(!existsSync(SIDECAR_BINARY))(
  "cached KV goes to the host and comes back, and slots are free when released",
  async () => {
    const model = await ensureTinyModel(fileURLToPath(new URL("../../../../.cache/models", import.meta.url)));
    const worker = await startRealWorker("w", "mixed", { model, kvBytes: 2 ** 20, swapBytes: 2 ** 20 });
    const incarnation = worker.worker.supervisor.current;
    if (incarnation === undefined) throw new Error("the sidecar is gone");
    const { kernel, description } = incarnation;
    const tenantScope = freshScope();
    const say = async () =>
      (await generate({ decode: worker, promptTokenCount: 100, maxTokens: 12, tenantScope }).result).tokenIds;
    const expected = await say();

    const blockIds = Array.from({ length: description.blockCount }, (_, block) => block);
    const leaseId = randomBytes(16);
    const swap = (direction: SwapDirection, slotIds: number[], signal?: AbortSignal) =>
      kernel.swap({ leaseId, swapId: randomBytes(16), direction, blockIds, slotIds }, signal);
    expect(description.slotCount).toBe(description.blockCount);
    const out = await swap(SwapDirection.OUT, []);
    expect(out).toMatchObject({ slotIds: blockIds, groupCount: 1 });
    expect(Number(out.dataBytes)).toBe(description.blockCount * 16 * description.kvBytesPerToken);

    // In the wrong places it answers something else, in its own what it answered before.
    await swap(SwapDirection.IN, out.slotIds.toReversed());
    expect(await say()).not.toEqual(expected);
    await swap(SwapDirection.IN, out.slotIds);
    expect(await say()).toEqual(expected);

    await expect(swap(SwapDirection.OUT, [], AbortSignal.abort())).rejects.toMatchObject({ reason: "cancelled" });
    const other = { leaseId: randomBytes(16), swapId: randomBytes(16), direction: SwapDirection.OUT, blockIds: [0] };
    await expect(kernel.swap(other)).rejects.toMatchObject({ reason: "overloaded" });
    await kernel.release(leaseId, [3]);
    expect((await kernel.stats()).slotsUsed).toBe(description.slotCount - 1);
    await kernel.release(leaseId);
    expect(await kernel.stats()).toMatchObject({ slotsUsed: 0, swapsRunning: 0, kvBytesSwappedIn: 2n * out.dataBytes });
    await worker.stop();
  },
);
