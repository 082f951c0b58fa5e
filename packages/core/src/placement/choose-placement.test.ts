import fc from "fast-check";
import { expect, test } from "vitest";
import { type ChoiceOutcome, choosePlacement, preferPrefill } from "./choose-placement.ts";
import type { AttachedWorker } from "./cluster-view.ts";
import { candidateName, describePlacement } from "./describe-placement.ts";
import { canDecode, canPrefill } from "./fit.ts";
import { assumedRates } from "./link-belief.ts";
import { aggregatedTtft, PREDICTION_DEFAULTS, splitTtft } from "./predict.ts";
import { NOTHING_RESERVED } from "./reservations.ts";
import { attached, facts, request } from "./testing/world.ts";
import { decodeBlockCount, prefillBlockCount, type RequestShape } from "./worker-facts.ts";

function choose(
  workers: readonly AttachedWorker[],
  shape = request(100, 20),
  avoid: readonly string[] = [],
  mayPrefillLocally = false,
  cached: Readonly<Record<string, number>> = {},
): ChoiceOutcome {
  const exclusionOf = (worker: AttachedWorker) => (avoid.includes(worker.facts.workerId) ? "avoid" : "none");
  return choosePlacement(workers, shape, () => NOTHING_RESERVED, exclusionOf, {
    ...PREDICTION_DEFAULTS,
    mayPrefillLocally,
    cachedTokensOf: ({ workerId }) => cached[workerId] ?? 0,
    kvRates: assumedRates(PREDICTION_DEFAULTS.kvBytesPerSecond),
  });
}

function names(outcome: ChoiceOutcome): readonly string[] {
  return outcome.kind === "placed" ? outcome.candidates.map(candidateName) : [outcome.kind];
}

test("what a worker has of the prompt is not computed there: its queue may be longer by that, but not by more", () => {
  const queue = (queuedPromptTokenCount: number) => ({ queuedPromptTokenCount });
  // Over a link on which nothing is worth fetching.
  const far = { kvBytesPerToken: 450_000 };
  const workers = [attached("d1"), attached("p1", {}, far), attached("p2", queue(60), far)];
  expect(names(choose(workers))).toEqual(["p1 → d1", "p2 → d1"]);
  const outcome = choose(workers, request(100, 20), [], false, { p2: 64, d1: 64 });
  expect(names(outcome)).toEqual(["p2 → d1", "p1 → d1"]);
  if (outcome.kind !== "placed") throw new Error("not placed");
  expect(outcome.candidates[0]).toMatchObject({ uncachedTokenCount: 36, ttft: { queueMs: 60, computeMs: 36 } });
  expect(describePlacement(outcome.candidates, request(100, 20), 0)).toContain("36 of 100 tokens");
  expect(
    names(
      choose([attached("d1"), attached("p1", {}, far), attached("p2", queue(70), far)], request(100, 20), [], false, {
        p2: 64,
      }),
    )[0],
  ).toBe("p1 → d1");
});

test("what a busy worker has cached is fetched by an idle one, where that is quicker than computing it", () => {
  const busy = attached("p1", { queuedPromptTokenCount: 500 });
  const outcome = choose([attached("d1"), busy, attached("p2")], request(100, 20), [], false, { p1: 64 });
  if (outcome.kind !== "placed") throw new Error("not placed");
  expect(names(outcome)[0]).toBe("p2 → d1");
  expect(outcome.candidates[0]).toMatchObject({ uncachedTokenCount: 36, fetch: { holder: busy, tokenEnd: 64 } });
  expect(describePlacement(outcome.candidates, request(100, 20), 0)).toContain(
    "fetches 64 tokens that p1 has cached: 2.1 ms at 500 MB/s, assumed, computing 64 ms;",
  );
  // A link on which it takes longer than computing it anew.
  const slow = attached("p2", {}, { kvBytesPerToken: 1e6 });
  const computed = choose([attached("d1"), busy, slow], request(100, 20), [], false, { p1: 64 });
  if (computed.kind !== "placed") throw new Error("not placed");
  expect(computed.candidates[0]).toMatchObject({ uncachedTokenCount: 100, fetch: undefined });
  expect(describePlacement(computed.candidates, request(100, 20), 0)).toContain(
    "computes 64 tokens that p1 has cached",
  );
  // KV of other weights or another number format is not what would be computed.
  const other = attached("p2", {}, { exactFingerprint: "bb".repeat(16) });
  const apart = choose([attached("d1"), busy, other], request(100, 20), [], false, { p1: 64 });
  expect(apart.kind === "placed" && apart.candidates[0].fetch).toBeUndefined();
});

test("mixed workers fetch too, from each other and from prefill workers, and the idlest of equal holders lends", () => {
  const busy = { queuedPromptTokenCount: 500, waitingCount: 2 };
  const workers = [attached("m1", busy), attached("m2"), attached("p1", { ...busy, waitingCount: 1 })];
  const outcome = choose(workers, request(100, 20), [], false, { m1: 64, p1: 64 });
  if (outcome.kind !== "placed") throw new Error("not placed");
  expect(outcome.candidates[0]).toMatchObject({ mode: "aggregated", uncachedTokenCount: 36 });
  expect(outcome.candidates[0].decode.facts.workerId).toBe("m2");
  expect(outcome.candidates[0].fetch?.holder.facts.workerId).toBe("p1");
});

test("a decode worker that has some of the prompt needs less room for it, and less travels", () => {
  const workers = [attached("p1"), attached("d1"), attached("d2", { freeBlockCount: 10 })];
  expect(names(choose(workers))).toEqual(["p1 → d1"]);
  expect(names(choose(workers, request(100, 20), [], false, { d2: 64 }))).toEqual(["p1 → d2"]);
});

test("the shortest prefill queue wins, on the decode worker with the most free blocks", () => {
  const workers = [
    attached("p0", { queuedPromptTokenCount: 50 }),
    attached("p1", { queuedPromptTokenCount: 10 }),
    attached("d0", { freeBlockCount: 5 }),
    attached("d1", { freeBlockCount: 9 }),
  ];
  expect(names(choose(workers))).toEqual(["p1 → d1", "p0 → d1"]);
});

test("an idle mixed worker saves the hand-over; a busy one does not", () => {
  const pair = [attached("p0"), attached("d0")];
  expect(names(choose([...pair, attached("m0")]))).toEqual(["m0", "p0 → d0"]);
  expect(names(choose([...pair, attached("m0", { runningCount: 3 })]))).toEqual(["p0 → d0", "m0"]);
});

test("ties go to more free blocks, then to the smaller id", () => {
  expect(names(choose([attached("m2"), attached("m1"), attached("m0", { freeBlockCount: 10 })]))).toEqual([
    "m1",
    "m2",
    "m0",
  ]);
  expect(names(choose([attached("p0"), attached("d1"), attached("d0")]))).toEqual(["p0 → d0"]);
});

test("KV moves only between equal layouts, and only for the model asked for", () => {
  const other = { fingerprint: "bb".repeat(16), kvModel: { ...facts("p0").kvModel, modelRevision: "bb" } };
  const workers = [attached("p0"), attached("d0", {}, other)];
  expect(choose(workers)).toEqual({
    kind: "no_worker",
    message:
      'model "tiny" has no prefill and decode worker that could exchange KV: p0 and d0 (model_revision is aa and bb)',
  });
  expect(names(choose([...workers, attached("p1", {}, other)]))).toEqual(["p1 → d0"]);
  expect(names(choose([attached("m0", {}, { model: "big" })]))).toEqual(["no_worker"]);
});

test("blocks and shards may differ; another number format is taken where no equal one has room", () => {
  const f32 = { kvDtype: "f32" } as const;
  expect(names(choose([attached("p0"), attached("d0", {}, { blockSize: 16, blockCount: 22 })]))).toEqual(["p0 → d0"]);
  const decoders = [attached("d0", { freeBlockCount: 9 }), attached("d1", {}, f32)];
  expect(names(choose([attached("p0"), ...decoders]))).toEqual(["p0 → d0"]);
  expect(names(choose([attached("p0", {}, { kvDtype: "f16" }), ...decoders]))).toEqual(["p0 → d1"]);
  // A longer queue before a conversion.
  const busy = attached("p1", { queuedPromptTokenCount: 500 }, f32);
  expect(names(choose([attached("p0"), busy, attached("d1", {}, f32)]))).toEqual(["p1 → d1", "p0 → d1"]);
});

test("full workers are full, not absent; silent and unreported ones are absent", () => {
  expect(choose([attached("p0"), attached("d0", { freeBlockCount: 3 })])).toMatchObject({
    kind: "full",
    message: "all workers are full: the request needs 4 blocks on a decode worker",
  });
  expect(choose([attached("p0", { freeBlockCount: 3 }), attached("d0")])).toMatchObject({
    kind: "full",
    message: "all workers are full: the request needs 4 blocks on a prefill worker (free: p0 3)",
  });
  expect(names(choose([{ ...attached("m0"), isLost: true }]))).toEqual(["no_worker"]);
  expect(names(choose([{ ...attached("m0"), load: undefined }]))).toEqual(["no_worker"]);
});

test("a worker that failed is avoided if there is any other, even one that is full now", () => {
  expect(names(choose([attached("m0"), attached("m1", { runningCount: 9 })], undefined, ["m0"]))).toEqual(["m1"]);
  expect(names(choose([attached("m0"), attached("m1", { freeBlockCount: 0 })], undefined, ["m0"]))).toEqual(["full"]);
  expect(names(choose([attached("m0")], undefined, ["m0"]))).toEqual(["m0"]);
});

test("before a measurement the slowest measured peer is assumed, and without any the default", () => {
  const unmeasured = { prefillTokensPerSecond: 0, decodeStepMs: 0 };
  const outcome = choose([attached("m0", unmeasured), attached("m1", { prefillTokensPerSecond: 2_000 })]);
  expect(outcome.kind === "placed" && outcome.candidates.map((c) => c.prefillTokensPerSecond)).toEqual([2_000, 2_000]);
  const alone = choose([attached("m0", unmeasured)]);
  expect(alone.kind === "placed" && alone.candidates[0]).toMatchObject({ ttftMs: 200, tbtMs: 50 });
});

test("the reason shows the sum, the numbers and the alternatives", () => {
  const outcome = choose([
    attached("p0"),
    attached("p1", { queuedPromptTokenCount: 64 }),
    attached("d0", { runningCount: 2 }),
  ]);
  if (outcome.kind !== "placed") throw new Error(outcome.message);
  expect(describePlacement(outcome.candidates, request(100, 20), 12)).toBe(
    "split on p0 → d0: TTFT 114 ms = waited here 12 ms + queue 0.0 ms + compute 100 ms (100 tokens at 1000/s) + hand-over 2.0 ms; " +
      "TBT 13 ms beside 2 sequences, 11 of 11 blocks free; before p1 → d0 166 ms",
  );
});

test("the reason says why a decode worker computes the prompt, and no speed that was never measured", () => {
  const pair = choose([attached("p0"), attached("d0", { prefillTokensPerSecond: 0 })]);
  if (pair.kind !== "placed") throw new Error(pair.message);
  const [split] = pair.candidates;
  const local = { ...split, mode: "aggregated" as const, isLocalPrefill: true, prefill: undefined };
  const unmeasured = { ...local, prefillTokensPerSecond: 0 };
  expect(describePlacement([unmeasured, split], request(100, 20), 0)).toMatch(
    /^aggregated on d0, which computes the prompt as well: .*\(100 tokens\) .*before p0 → d0/,
  );
  expect(describePlacement([local], request(100, 20), 0)).toMatch(/^aggregated on d0, as no prefill worker is left: /);
});

/** The plain version: every pair and every mixed worker, by the rule as it is written. */
function bestByExhaustion(workers: readonly AttachedWorker[], shape: RequestShape): string | undefined {
  const found: { key: (number | string)[]; name: string }[] = [];
  const free = (worker: AttachedWorker) => worker.load?.freeBlockCount ?? 0;
  const add = (ttftMs: number, decode: AttachedWorker, prefill: AttachedWorker | undefined) => {
    const ids = [decode.facts.workerId, prefill?.facts.workerId ?? ""];
    found.push({
      key: [
        Number(prefill !== undefined && prefill.facts.kvDtype !== decode.facts.kvDtype),
        Math.round(ttftMs * 1_000),
        -free(decode),
        prefill ? -free(prefill) : 0,
        ...ids,
      ],
      name: prefill ? `${ids[1]} → ${ids[0]}` : `${ids[0]}`,
    });
  };
  for (const decode of workers) {
    const { load, facts } = decode;
    if (!load || !canDecode(facts, shape) || decodeBlockCount(shape, facts.blockSize) > free(decode)) continue;
    if (facts.role === "mixed") {
      const busyMs = load.runningCount + load.waitingCount > 0 ? load.decodeStepMs : 0;
      const parts = aggregatedTtft(
        load.queuedPromptTokenCount,
        shape.promptTokenCount,
        load.prefillTokensPerSecond,
        busyMs,
      );
      add(parts.queueMs + parts.computeMs + parts.tailMs, decode, undefined);
      continue;
    }
    for (const prefill of workers) {
      const { load: queue, facts: other } = prefill;
      if (!queue || !canPrefill(other, shape) || other.fingerprint !== facts.fingerprint) continue;
      if (prefillBlockCount(shape, other.blockSize) > free(prefill)) continue;
      const speed = queue.prefillTokensPerSecond;
      const parts = splitTtft(
        queue.queuedPromptTokenCount,
        shape.promptTokenCount,
        speed,
        ((shape.promptTokenCount * other.kvBytesPerToken) / PREDICTION_DEFAULTS.kvBytesPerSecond) * 1_000,
        PREDICTION_DEFAULTS,
      );
      add(parts.queueMs + parts.computeMs + parts.tailMs, decode, prefill);
    }
  }
  found.sort((a, b) => {
    const index = a.key.findIndex((part, i) => part !== b.key[i]);
    return index < 0 ? 0 : (a.key[index] ?? 0) < (b.key[index] ?? 0) ? -1 : 1;
  });
  return found[0]?.name;
}

test("the linear choice is the best of all pairs, whatever the order of the workers", () => {
  const worker = fc.record({
    role: fc.constantFrom("p", "d", "m"),
    free: fc.integer({ min: 0, max: 11 }),
    queued: fc.constantFrom(0, 0, 32, 100),
    running: fc.integer({ min: 0, max: 2 }),
    speed: fc.constantFrom(500, 1_000, 4_000),
    layout: fc.constantFrom("aa", "bb"),
    kvDtype: fc.constantFrom("bf16", "f32"),
  });
  fc.assert(
    fc.property(
      fc.array(worker, { maxLength: 8 }),
      fc.integer({ min: 1, max: 250 }),
      fc.integer({ min: 1, max: 80 }),
      (specs, prompt, max) => {
        const workers = specs.map((spec, index) =>
          attached(
            `${spec.role}${index}`,
            {
              freeBlockCount: spec.free,
              queuedPromptTokenCount: spec.queued,
              runningCount: spec.running,
              prefillTokensPerSecond: spec.speed,
            },
            { fingerprint: spec.layout.repeat(16), kvDtype: spec.kvDtype },
          ),
        );
        const shape = request(prompt, max);
        const chosen = choose(workers, shape);
        expect(chosen.kind === "placed" ? candidateName(chosen.candidates[0]) : undefined).toBe(
          bestByExhaustion(workers, shape),
        );
        expect(names(choose([...workers].reverse(), shape))).toEqual(names(chosen));
      },
    ),
    { numRuns: 500 },
  );
});

test("without a prefill worker a decode worker computes the prompt, if it may; before a worker that failed is tried again", () => {
  const workers = [attached("prefill-0"), attached("decode-0"), attached("decode-1")];
  const decoders = workers.slice(1);
  expect(choose(decoders).kind).toBe("no_worker");
  const alone = choose(decoders, request(100, 20), [], true);
  expect(names(alone)).toEqual(["decode-0", "decode-1"]);
  expect(alone.kind === "placed" && alone.candidates[0].isLocalPrefill).toBe(true);
  expect(names(choose(workers, request(100, 20), [], true))).toEqual(["prefill-0 → decode-0"]);
  expect(names(choose(workers, request(100, 20), ["prefill-0", "decode-0"], true))).toEqual(["decode-1"]);
  expect(names(choose(workers, request(100, 20), ["decode-0", "decode-1"], true))).toEqual(["prefill-0 → decode-0"]);
  expect(choose(decoders, request(1_000_000, 20), [], true).kind).toBe("no_worker");
});

test("a prefill worker that may still hold what it computed comes first, where it is a candidate", () => {
  const outcome = choose([attached("prefill-0"), attached("prefill-1"), attached("decode-0")]);
  expect(outcome.kind).toBe("placed");
  if (outcome.kind !== "placed") return;
  const first = (workerId: string) => names(preferPrefill(outcome, workerId));
  expect(first("prefill-1")).toEqual(["prefill-1 → decode-0", "prefill-0 → decode-0"]);
  expect(first("prefill-9")).toEqual(names(outcome));
  expect(first("")).toEqual(names(outcome));
});
