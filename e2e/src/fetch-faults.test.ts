import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { freePort, type LocalCluster } from "@kvasir/cli";
import type { KvasirError } from "@kvasir/core";
import { DecodeService, type GenerateResponse, PlacementMode, RouterService, type WorkerRef } from "@kvasir/proto";
import { createClient, errorFromService } from "@kvasir/rpc";
import { type Link, startLink } from "@kvasir/testkit/link";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { Standstill } from "./standstill.ts";
import { expectNothingLeft, processOf, startTiny, workersOf } from "./support.ts";

// One prefill worker fetches from another one, over a link that is slow enough for the fetch to have a middle. What happens there to either of
// them, to the link, to the decode worker or to the client costs time at most: never a token, never a block.
const LENDER = "prefill-0";
const BORROWER = "prefill-1";
const LENDER_HOST = "127.0.0.9";
const LEASE_MS = 4_000;
const LENT_TOKENS = 1_504;
const PROMPT_TOKENS = 1_800;
const SLOW_BYTES_PER_SECOND = 1e6;
/** Of 1.1 MB that are lent: soon, since the device takes over what comes so slowly. */
const MIDDLE_BYTES = 30_000;

const standstill = new Standstill();
let cluster: LocalCluster;
let link: Link;
let expected: readonly number[];

beforeAll(async () => {
  const ports = [await freePort(), await freePort()] as const;
  link = await startLink(LENDER_HOST, ports);
  const listen = ["--listen", `127.0.0.1:${ports[0]}`, "--transfer-listen", `127.0.0.1:${ports[1]}`];
  const extraFlags = { [LENDER]: [...listen, "--advertise-host", LENDER_HOST] };
  cluster = await startTiny({ prefill: 2, restart: true, stepTokens: 64, leaseMs: LEASE_MS, extraFlags });
  // The borrower computes nothing before its first fetch, so that it takes itself for slow.
  const alone = await ask({ scope: randomBytes(16), tokenCount: PROMPT_TOKENS, prefill: LENDER }).ended;
  expect(alone.error).toBeUndefined();
  expected = alone.tokenIds;
}, 60_000);
afterEach(() => {
  standstill.end();
  link.pace(Number.POSITIVE_INFINITY);
  link.set("whole");
});
afterAll(async () => {
  await cluster?.stop();
  await link?.close();
});

interface Asked {
  readonly scope: Uint8Array;
  readonly tokenCount: number;
  readonly prefill: string;
  readonly fetchesFrom?: string;
}

interface Ending {
  readonly tokenIds: readonly number[];
  readonly remoteTokenCount: number;
  readonly error: KvasirError | undefined;
}

/** A request as a gateway makes it, with a placement of our own. */
function ask({ scope, tokenCount, prefill, fetchesFrom }: Asked): {
  readonly ended: Promise<Ending>;
  cancel(): void;
} {
  const tokenIds: number[] = [];
  let remoteTokenCount = 0;
  let cancel = () => undefined as unknown;
  const ended = (async (): Promise<Ending> => {
    const workers = await allAttached();
    const decode = refOf(workers, processOf(cluster, "decode").name);
    const fetch = fetchesFrom && { holder: refOf(workers, fetchesFrom), tokenEnd: LENT_TOKENS };
    const others = [LENDER, BORROWER].filter((name) => name !== prefill).map((name) => refOf(workers, name));
    const client = createClient(DecodeService, decode.address);
    const call = client.generate({
      requestId: "faults",
      promptTokenIds: Array.from({ length: tokenCount }, (_, index) => 10 + ((index * 7) % 800)),
      sampling: { maxTokens: 16, temperature: 0.8, seed: 3n },
      placement: {
        ...{ mode: PlacementMode.SPLIT, decode, prefill: refOf(workers, prefill), otherPrefills: others },
        ...(fetch ? { fetch } : {}),
      },
      tenantScope: scope,
    });
    cancel = () => call.cancel();
    try {
      for await (const { kind } of call as AsyncIterable<GenerateResponse>) {
        if (kind.case !== "tokens") continue;
        remoteTokenCount += kind.value.cached?.remoteWorker ?? 0;
        tokenIds.push(...kind.value.tokens.map(({ tokenId }) => tokenId));
      }
      return { tokenIds, remoteTokenCount, error: undefined };
    } catch (error) {
      return { tokenIds, remoteTokenCount, error: errorFromService(error) };
    } finally {
      client.channel.close();
    }
  })();
  return { ended, cancel: () => cancel() };
}

/** A worker whose loss was noticed late may be away once more for a moment. */
async function allAttached(): Promise<ReadonlyMap<string, WorkerRef>> {
  for (let tries = 0; ; tries++) {
    const workers = await attached();
    const missing = workersOf(cluster).filter(({ name }) => !workers.has(name));
    if (missing.length === 0) return workers;
    if (tries === 100)
      throw new Error(`${missing.map(({ name }) => name)} attached no more, only ${[...workers.keys()]}`);
    await sleep(100);
  }
}

async function attached(): Promise<ReadonlyMap<string, WorkerRef>> {
  const client = createClient(RouterService, processOf(cluster, "router").grpcAddress ?? "");
  const { workers } = await client.describeCluster({}, { deadlineMs: 5_000 });
  client.channel.close();
  const refs = workers.flatMap(({ hello, epoch }) => (hello ? [{ ...hello, epoch } as unknown as WorkerRef] : []));
  return new Map(refs.map(({ workerId, epoch, address }) => [workerId, { workerId, epoch, address } as WorkerRef]));
}

function refOf(workers: ReadonlyMap<string, WorkerRef>, name: string): WorkerRef {
  const found = workers.get(name);
  if (found === undefined) throw new Error(`${name} is not attached, only ${[...workers.keys()]}`);
  return found;
}

/** Fetches of the borrower that ended, complete or not. */
async function fetches(): Promise<{ readonly complete: number; readonly others: number }> {
  const samples = [...(await cluster.metrics(BORROWER))].filter(([name]) => name.startsWith("kvasir_prefix_fetches_t"));
  const complete = samples.filter(([name]) => name.includes('"complete"')).reduce((sum, [, count]) => sum + count, 0);
  return { complete, others: samples.reduce((sum, [, count]) => sum + count, 0) - complete };
}

/** What the lender has cached of a new tenant's text, the borrower does not. */
async function lent(): Promise<Uint8Array> {
  const scope = randomBytes(16);
  const { error } = await ask({ scope, tokenCount: LENT_TOKENS + 1, prefill: LENDER }).ended;
  expect(error).toBeUndefined();
  return scope;
}

/** A request whose prefill worker fetches, in the middle of that: its sidecar, which neither computes nor verifies, stands still until `standstill` ends. */
async function inTheMiddle() {
  // A channel that fell silent before may have to be noticed first: then once more.
  for (let attempt = 0; attempt < 20; attempt++) {
    link.pace(Number.POSITIVE_INFINITY);
    const scope = await lent();
    const before = await fetches();
    link.pace(SLOW_BYTES_PER_SECOND);
    const middle = link.setAfter(MIDDLE_BYTES, "whole").then(() => {
      standstill.hold(cluster.process(BORROWER).sidecarPid);
      return true;
    });
    const request = ask({ scope, tokenCount: PROMPT_TOKENS, prefill: BORROWER, fetchesFrom: LENDER });
    if (await Promise.race([middle, request.ended.then(() => false)])) return { ...request, before };
  }
  throw new Error("no fetch got to its middle");
}

function killSidecar(name: string): void {
  const { sidecarPid } = cluster.process(name);
  if (sidecarPid === undefined) throw new Error(`${name} tells no sidecar`);
  process.kill(sidecarPid, "SIGKILL");
}

async function expectRecovery(): Promise<void> {
  link.pace(Number.POSITIVE_INFINITY);
  link.set("whole");
  await expect.poll(() => cluster.processes.every(({ isRunning }) => isRunning), { timeout: 20_000 }).toBe(true);
  await cluster.ready();
  await expectNothingLeft(cluster);
}

test("over a whole link what computing does not reach first comes, and the tokens are those that computing gives", async () => {
  // Where others use the processors, this model's KV may take longer to come than to be computed: then once more.
  for (let attempt = 0, fetched = 0; fetched === 0; attempt++) {
    expect(attempt).toBeLessThan(20);
    const before = await fetches();
    const { tokenIds, remoteTokenCount, error } = await ask({
      ...{ scope: await lent(), tokenCount: PROMPT_TOKENS, prefill: BORROWER, fetchesFrom: LENDER },
    }).ended;
    expect([error, tokenIds]).toEqual([undefined, expected]);
    fetched = remoteTokenCount;
    const { complete, others } = await fetches();
    expect(complete + others).toBe(before.complete + before.others + 1);
  }
  await expectRecovery();
}, 60_000);

const AT_THE_BORROWER: Readonly<Record<string, () => unknown>> = {
  "the borrower is killed": () => cluster.process(BORROWER).kill("SIGKILL"),
  "the borrower's sidecar is killed": () => killSidecar(BORROWER),
};

test.each(Object.keys(AT_THE_BORROWER))(
  "%s in the middle of a fetch: the next prefill worker serves, with the same tokens",
  async (what) => {
    const request = await inTheMiddle();
    await AT_THE_BORROWER[what]?.();
    standstill.end();
    link.pace(Number.POSITIVE_INFINITY);
    const { tokenIds, error } = await request.ended;
    expect([error, tokenIds]).toEqual([undefined, expected]);
    await expectRecovery();
  },
  60_000,
);

test.each(["the client goes away", "the decode worker is killed"])(
  "%s in the middle of a fetch: nothing is held",
  async (what) => {
    const request = await inTheMiddle();
    if (what === "the client goes away") request.cancel();
    else await processOf(cluster, "decode").kill("SIGKILL");
    expect((await request.ended).error?.reason).toMatch(/^(cancelled|unavailable|internal)$/);
    standstill.end();
    await expectRecovery();
  },
  60_000,
);

/** Each leaves the borrower alive, so that its counters tell how the fetch ended. */
const AT_THE_SOURCE: Readonly<Record<string, () => unknown>> = {
  "the lender is killed": () => cluster.process(LENDER).kill("SIGKILL"),
  "the lender's sidecar is killed": () => killSidecar(LENDER),
  "the link to the lender is cut": () => link.set("cut"),
  "the link to the lender falls silent": () => link.set("silent"),
};

test.each(Object.keys(AT_THE_SOURCE))(
  "%s in the middle of a fetch: the rest is computed, with the same tokens",
  async (what) => {
    for (let attempt = 0; ; attempt++) {
      expect(attempt).toBeLessThan(10);
      const { before, ...request } = await inTheMiddle();
      await AT_THE_SOURCE[what]?.();
      standstill.end();
      const { tokenIds, error } = await request.ended;
      const after = await fetches();
      // The borrower may not be back yet from what befell it before, so that the lender computes, and all may have been computed by then.
      const isFetch = after.complete + after.others > before.complete + before.others;
      if (isFetch) expect([error, tokenIds]).toEqual([undefined, expected]);
      const isInTheMiddle = isFetch && after.complete === before.complete;
      if (isInTheMiddle) expect(after.others).toBe(before.others + 1);
      await expectRecovery();
      if (isInTheMiddle) break;
    }
  },
  60_000,
);
