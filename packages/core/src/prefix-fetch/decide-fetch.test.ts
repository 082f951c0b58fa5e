import fc from "fast-check";
import { expect, test } from "vitest";
import { decideFetch, type FetchLimits, type FetchProgress } from "./decide-fetch.ts";

const LIMITS: FetchLimits = { blockSize: 32, chunkTokenCount: 256, openChunkMax: 2, graceMs: 30 };
const STEP_TOKENS = 512;

const BEGUN: FetchProgress = {
  ...{ plannedCount: 0, askedFrom: 3_200, openTokenCount: 0, openChunkCount: 0, verifiedTokenCount: 0 },
  ...{ isLent: true, elapsedMs: 0, quietMs: 0, computeTokensPerMs: 1 },
};
const decide = (change: Partial<FetchProgress>) => decideFetch({ ...BEGUN, ...change }, LIMITS);

test("begins at the back, two calls at a time, and leaves the device alone as long as nothing speaks against the link", () => {
  expect(decide({})).toEqual({ next: { begin: 2_944, end: 3_200 }, computeEnd: 0, givesUp: false });
  expect(decide({ isLent: false, elapsedMs: 30, quietMs: 30 }).next).toBeUndefined();
  const two = { askedFrom: 2_688, openTokenCount: 512, openChunkCount: 2, elapsedMs: 5, quietMs: 5 };
  expect(decide(two)).toEqual({ next: undefined, computeEnd: 0, givesUp: false });
});

test("of what is left, computing takes its share: half where both are as quick, nothing where fetching is a hundred times as quick", () => {
  const half = { askedFrom: 2_688, openTokenCount: 256, openChunkCount: 1, verifiedTokenCount: 256 };
  // 2,944 tokens left.
  expect(decide({ ...half, elapsedMs: 286 })).toMatchObject({ computeEnd: 1_472, next: { begin: 2_432, end: 2_688 } });
  expect(decide({ ...half, elapsedMs: 32 })).toMatchObject({ computeEnd: 0 });
  // What computing will have reached first is not asked for.
  expect(decide({ ...half, elapsedMs: 25_600 })).toMatchObject({ computeEnd: 2_688, next: undefined });
});

test("what is open is given up when computing up to its end is quicker than waiting, and silence is as slow as it is long", () => {
  const met = { plannedCount: 2_688, askedFrom: 2_688, openTokenCount: 512, openChunkCount: 2 };
  expect(decide({ ...met, elapsedMs: 541, quietMs: 541 }).givesUp).toBe(false);
  expect(decide({ ...met, elapsedMs: 543, quietMs: 543 }).givesUp).toBe(true);
  expect(decide({ ...met, plannedCount: 2_176, elapsedMs: 543, quietMs: 543 }).givesUp).toBe(false);
  expect(decide({ isLent: false, elapsedMs: 3_231, quietMs: 3_231 }).givesUp).toBe(true);
});

interface Conditions {
  readonly tokenCount: number;
  readonly cachedBlocks: number;
  readonly computePerMs: number;
  /** Tokens a millisecond that the link carries in each of these stretches of 50 ms; the last one stays. */
  readonly link: readonly number[];
  readonly latencyMs: number;
  /** Whether others keep the device busy in each stretch of 100 ms; afterwards nobody does. */
  readonly busy: readonly boolean[];
}

interface Chunk {
  readonly begin: number;
  readonly end: number;
  verified: number;
}

/** `expect` would take most of the time. */
function comes(from: Uint8Array, token: number, way: 1 | 2): void {
  if (from[token] !== 0) throw new Error(`token ${token} came ${from[token]} and comes ${way}`);
  from[token] = way;
}

/** A device and a link, as far as a fetch sees them. Answers with the time when every token is there. */
function run(conditions: Conditions): { readonly ms: number; readonly fetched: number; readonly gaveUp: boolean } {
  const { tokenCount, cachedBlocks, computePerMs, link, latencyMs, busy } = conditions;
  const tokenEnd = Math.floor((tokenCount - 1) / LIMITS.blockSize) * LIMITS.blockSize;
  const first = Math.min(cachedBlocks * LIMITS.blockSize, tokenEnd);
  /** How each token came: 0 not yet, 1 computed, 2 fetched. */
  const from = new Uint8Array(tokenCount).fill(1, 0, first);
  let planned = first;
  let askedFrom = tokenEnd;
  let open: Chunk[] = [];
  let verified = 0;
  let quietSince = 0;
  let stepEnd = 0;
  let credit = 0;
  let isOver = askedFrom <= planned;
  let gaveUp = false;
  const skip = () => {
    while (planned < tokenCount && from[planned] === 2) planned++;
  };
  for (let ms = 0; ms < 200_000; ms++) {
    const isLent = ms >= latencyMs;
    // The link serves its calls one after the other.
    const carried = link[Math.min(Math.floor(ms / 50), link.length - 1)] ?? 0;
    credit = open.length > 0 && isLent ? credit + carried : 0;
    for (const chunk of isLent ? open : []) {
      const before = chunk.verified;
      const now = before + Math.min(Math.floor(credit), chunk.end - before);
      chunk.verified = now;
      credit -= now - before;
      if (now > before) quietSince = ms;
      verified += now - before;
      for (let token = before; token < now; token++) {
        comes(from, token, 2);
      }
    }
    open = open.filter((chunk) => chunk.verified < chunk.end);
    const openTokenCount = open.reduce((sum, chunk) => sum + chunk.end - chunk.verified, 0);
    let computeEnd = tokenCount;
    if (!isOver) {
      const decision = decideFetch(
        {
          ...{ plannedCount: planned, askedFrom, openTokenCount, openChunkCount: open.length, isLent },
          ...{
            verifiedTokenCount: verified,
            elapsedMs: ms,
            quietMs: ms - quietSince,
            computeTokensPerMs: computePerMs,
          },
        },
        LIMITS,
      );
      const { next } = decision;
      if (next !== undefined) {
        expect(next.begin % LIMITS.blockSize).toBe(0);
        expect(next.begin).toBeGreaterThanOrEqual(planned);
        expect([next.end, next.end > next.begin]).toEqual([askedFrom, true]);
        open.push({ ...next, verified: next.begin });
        askedFrom = next.begin;
      }
      expect(decision.computeEnd).toBeLessThanOrEqual(tokenEnd);
      computeEnd = Math.min(decision.computeEnd, askedFrom);
      gaveUp = decision.givesUp;
      isOver = gaveUp || (open.length === 0 && askedFrom <= planned);
      if (isOver) {
        open = [];
        // Whole blocks that came are kept, and the rest is computed.
        for (
          let block = Math.ceil(planned / LIMITS.blockSize) * LIMITS.blockSize;
          block < tokenEnd;
          block += LIMITS.blockSize
        ) {
          const isWhole = from.subarray(block, block + LIMITS.blockSize).every((way) => way === 2);
          if (!isWhole) from.fill(0, block, block + LIMITS.blockSize);
        }
        computeEnd = tokenCount;
      }
    }
    const isBusy = busy[Math.floor(ms / 100)] ?? false;
    if (ms < stepEnd || isBusy) continue;
    if (isOver) skip();
    if (planned >= tokenCount) return { ms, fetched: from.filter((way) => way === 2).length, gaveUp };
    let end = Math.min(planned + STEP_TOKENS, computeEnd);
    for (let token = planned; isOver && token < end; token++) if (from[token] === 2) end = token;
    if (end <= planned) continue;
    for (let token = planned; token < end; token++) {
      comes(from, token, 1);
    }
    stepEnd = ms + (end - planned) / computePerMs;
    planned = end;
  }
  throw new Error("the prompt never got done");
}

const conditions = fc.record({
  tokenCount: fc.integer({ min: 2, max: 3_000 }),
  cachedBlocks: fc.nat(40),
  computePerMs: fc.constantFrom(1, 5, 30),
  link: fc.array(fc.constantFrom(0, 0.2, 1, 5, 50), { minLength: 1, maxLength: 8 }),
  latencyMs: fc.constantFrom(1, 10, 100, 1e9),
  busy: fc.array(fc.boolean(), { maxLength: 8 }),
});

test("whatever link and device do, every token is computed or fetched once, and it costs little more than twice computing alone", () => {
  let fetched = 0;
  let gaveUp = 0;
  fc.assert(
    fc.property(conditions, (drawn) => {
      const ended = run(drawn);
      fetched += ended.fetched;
      if (ended.gaveUp) gaveUp++;
      const uncached = drawn.tokenCount - drawn.cachedBlocks * LIMITS.blockSize;
      const aloneMs = Math.max(1, uncached) / drawn.computePerMs;
      const slackMs = 100 * drawn.busy.length + LIMITS.graceMs + 10;
      expect(ended.ms).toBeLessThanOrEqual(2 * aloneMs + slackMs);
    }),
    { numRuns: 200 },
  );
  expect(fetched).toBeGreaterThan(0);
  expect(gaveUp).toBeGreaterThan(0);
});

const STEADY = { tokenCount: 4_001, cachedBlocks: 0, latencyMs: 5, busy: [] };

test("over a steady link it takes about as long as both together need, and never longer than the better one alone", () => {
  for (const computePerMs of [0.5, 1, 2, 4]) {
    for (const linkPerMs of [0.5, 1, 2, 4, 20]) {
      const { ms } = run({ ...STEADY, computePerMs, link: [linkPerMs] });
      const togetherMs = STEADY.tokenCount / (computePerMs + linkPerMs);
      const betterMs = STEADY.tokenCount / Math.max(computePerMs, linkPerMs);
      // A step that runs when the last KV comes, and the first chunk, of which nothing was known.
      const stepMs = LIMITS.chunkTokenCount / computePerMs + LIMITS.graceMs;
      expect(ms).toBeLessThanOrEqual(togetherMs * 1.15 + stepMs);
      expect(ms).toBeLessThanOrEqual(betterMs + stepMs);
    }
  }
});
