import type { LocalCluster } from "@kvasir/cli";
import { afterAll, beforeAll, expect, test } from "vitest";
import { chatBody, expectNothingLeft, openStream, startTiny } from "./support.ts";

const REQUESTS = 200;
const CONCURRENCY = 16;
const CANCELLED_SHARE = 0.1;
const SEED = 41;

let cluster: LocalCluster;
beforeAll(async () => {
  cluster = await startTiny({ prefill: 1, decode: 1, mixed: 1 });
}, 60_000);
afterAll(() => cluster?.stop());

/** Some time after it is sent, or at some share of its tokens. */
type Cancel =
  | { readonly afterMs: number; readonly atShare?: undefined }
  | { readonly afterMs?: undefined; readonly atShare: number };

const cancelOf = (drawn: number): Cancel =>
  drawn < 0.4 ? { afterMs: drawn * 1_000 } : { atShare: (drawn - 0.4) / 0.6 };

function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

test(`${REQUESTS} mixed requests, ${CONCURRENCY} at a time, a tenth cancelled anywhere (seed ${SEED}): each ends once, nothing is left`, async () => {
  const draw = random(SEED);
  const plans = Array.from({ length: REQUESTS }, () => ({
    words: 1 + Math.floor(draw() ** 3 * 250),
    maxTokens: 1 + Math.floor(draw() * 60),
    temperature: draw() < 0.5 ? 0 : 1,
    cancel: draw() < CANCELLED_SHARE ? cancelOf(draw()) : undefined,
  }));
  const ends = new Map<string, number>();
  const wrong: string[] = [];
  let next = 0;
  const worker = async () => {
    for (let index = next++; index < plans.length; index = next++) {
      const plan = plans[index];
      if (plan === undefined) return;
      const end = await run(plan);
      ends.set(end, (ends.get(end) ?? 0) + 1);
      // A quick machine is through before some of the times.
      const right = { never: ["finished"], time: ["finished", "cancelled"], token: ["cancelled"] } as const;
      const { cancel } = plan;
      const kind = cancel === undefined ? "never" : cancel.afterMs === undefined ? "token" : "time";
      if (!right[kind].some((expected) => expected === end)) wrong.push(`${index}: ${end}`);
    }
  };
  await Promise.all(Array.from({ length: CONCURRENCY }, worker));
  expect(wrong).toEqual([]);
  expect([...ends.values()].reduce((sum, count) => sum + count)).toBe(REQUESTS);
  expect(ends.get("cancelled") ?? 0).toBeGreaterThan(REQUESTS * CANCELLED_SHARE * 0.3);
  await expectNothingLeft(cluster);
}, 120_000);

async function run(plan: {
  words: number;
  maxTokens: number;
  temperature: number;
  cancel: Cancel | undefined;
}): Promise<string> {
  const abort = new AbortController();
  const { afterMs, atShare = Number.POSITIVE_INFINITY } = plan.cancel ?? {};
  const timer = afterMs === undefined ? undefined : setTimeout(() => abort.abort(), afterMs);
  let eventCount = 0;
  try {
    const fields = {
      max_tokens: plan.maxTokens,
      temperature: plan.temperature,
      ignore_eos: true,
      stream_options: { include_usage: true },
    };
    const stream = await openStream(cluster, chatBody("word ".repeat(plan.words), fields), abort.signal);
    let finishes = 0;
    let completionTokens: unknown;
    for (let event = await stream.next(); event !== undefined; event = await stream.next()) {
      if (event === "done") {
        if (finishes !== 1) return `${finishes} finish reasons`;
        return completionTokens === plan.maxTokens ? "finished" : `${completionTokens} of ${plan.maxTokens} tokens`;
      }
      if ("error" in event) return JSON.stringify(event.error);
      const [choice] = event.choices as { finish_reason: string | null }[];
      if (choice?.finish_reason) finishes++;
      // Not each token makes an event, but the last one does.
      if (++eventCount > atShare * plan.maxTokens || (choice?.finish_reason && plan.cancel?.atShare !== undefined)) {
        abort.abort();
        return "cancelled";
      }
      if (event.usage) completionTokens = (event.usage as { completion_tokens: number }).completion_tokens;
    }
    return abort.signal.aborted ? "cancelled" : "cut off";
  } catch (error) {
    return abort.signal.aborted ? "cancelled" : String(error);
  } finally {
    clearTimeout(timer);
  }
}
