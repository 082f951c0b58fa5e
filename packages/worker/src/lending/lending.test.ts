import { BLOCK_HASH_BYTES } from "@kvasir/core";
import { CacheFeedService, type FollowResponse, LendingService, type Loan, type UsedBlocks } from "@kvasir/proto";
import { createClient, errorFromService } from "@kvasir/rpc";
import { afterEach, expect, test } from "vitest";
import { freshScope, generate, startTestWorker, type TestWorker, type TestWorkerOptions } from "../testing/harness.ts";
import { eventually, expectQuiet } from "../testing/quiet.ts";

const ends: (() => unknown)[] = [];
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});

/** A worker with a store that follows it and borrows from it. */
async function world(options: TestWorkerOptions = {}) {
  const worker = await startTestWorker("w", "mixed", options);
  ends.push(() => worker.stop());
  const feed = createClient(CacheFeedService, worker.address);
  const lending = createClient(LendingService, worker.address);
  ends.push(
    () => feed.channel.close(),
    () => lending.channel.close(),
  );
  const told: FollowResponse[] = [];
  const follow = () => {
    const ended = Promise.withResolvers<string>();
    const stream = feed.follow({});
    stream.on("data", (response) => told.push(response));
    stream.on("error", (error) => ended.resolve(errorFromService(error).reason));
    return { ended: ended.promise, cancel: () => stream.cancel() };
  };
  /** A loan that lives until it is ended. */
  const lend = (used: Pick<UsedBlocks, "tenantScope" | "hashes">, expectedEpoch = epochOf(worker)) => {
    const call = lending.lend();
    const loan = Promise.withResolvers<Loan>();
    const ended = Promise.withResolvers<string>();
    loan.promise.catch(() => undefined);
    call.on("data", ({ kind }) => kind.case === "loan" && loan.resolve(kind.value));
    call.on("error", (error) => {
      const { reason } = errorFromService(error);
      loan.reject(new Error(reason));
      ended.resolve(reason);
    });
    call.on("end", () => ended.resolve("end"));
    call.write({ kind: { case: "start", value: { ...used, expectedEpoch, firstBlock: 0 } } });
    return { loan: loan.promise, ended: ended.promise, cut: () => call.cancel(), end: () => call.end() };
  };
  /** The blocks that a request used, as the feed tells of them. */
  const use = async (tenantScope: Uint8Array): Promise<UsedBlocks> => {
    const before = told.length;
    await generate({ decode: worker, tenantScope, promptTokenCount: 100, maxTokens: 4 }).result;
    await eventually(() => expect(told.length).toBeGreaterThan(before));
    const { kind } = told.at(-1) as FollowResponse;
    if (kind.case !== "used") throw new Error(`the feed told ${kind.case}`);
    return kind.value;
  };
  return { worker, follow, told, lend, use };
}

const epochOf = ({ worker }: TestWorker) => worker.supervisor.current?.epoch ?? 0n;
const pinned = ({ worker }: TestWorker) => worker.supervisor.current?.audit().pinned;

test("a store is told what a request used, and borrows it until it ends the loan or is gone", async () => {
  const { worker, follow, told, lend, use } = await world();
  follow();
  await eventually(() => expect(told[0]?.kind.case).toBe("hello"));
  const tenantScope = freshScope();
  const used = await use(tenantScope);
  const blockSize = worker.worker.supervisor.current?.layout.blockSize ?? 0;
  const blockCount = used.hashes.length / BLOCK_HASH_BYTES;
  expect(blockCount).toBe(Math.floor(103 / blockSize));
  expect([...used.tenantScope]).toEqual([...tenantScope]);
  for (const end of ["end", "cut"] as const) {
    const loan = lend(used);
    expect((await loan.loan).blockCount).toBe(blockCount);
    expect(pinned(worker)).toBe(blockCount);
    loan[end]();
    await expectQuiet(worker);
  }
  // What is not there is not lent, and of two texts only the first one's beginning.
  expect((await lend({ tenantScope, hashes: new Uint8Array(32) }).loan).blockCount).toBe(0);
  const broken = used.hashes.slice();
  broken.set([(broken[BLOCK_HASH_BYTES] ?? 0) ^ 1], BLOCK_HASH_BYTES);
  const part = lend({ tenantScope, hashes: broken });
  expect((await part.loan).blockCount).toBe(1);
  part.cut();
  await expectQuiet(worker);
}, 20_000);

test("a store that says nothing more keeps blocks no longer than a lease", async () => {
  const { worker, follow, lend, use } = await world({ leaseMs: 300 });
  follow();
  const loan = lend(await use(freshScope()));
  expect((await loan.loan).blockCount).toBeGreaterThan(0);
  await loan.ended;
  await expectQuiet(worker);
}, 20_000);

test("a sidecar that dies ends loans and feeds; one that cannot open blocks lends none; an old epoch is refused", async () => {
  const { worker, follow, lend, use } = await world();
  const feed = follow();
  const used = await use(freshScope());
  await expect(lend(used, 1n << 40n).loan).rejects.toThrow("stale_epoch");
  worker.faults.refusePublish = "internal";
  await expect(lend(used).loan).rejects.toThrow("internal");
  await expectQuiet(worker);
  worker.faults.refusePublish = undefined;
  const loan = lend(used);
  await loan.loan;
  const epoch = epochOf(worker);
  worker.kernel().kill("killed");
  expect(await loan.ended).toBe("end");
  expect(await feed.ended).toBe("unavailable");
  await eventually(() => expect(epochOf(worker)).toBeGreaterThan(epoch));
  await expectQuiet(worker);
}, 20_000);
