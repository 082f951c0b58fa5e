import { type EvictionPolicy, LruPolicy, S3FifoPolicy, ScoredPolicy, UseSketch } from "@kvasir/core";
import { type ReplayResult, readTrace, repeated, replay, type TracedRequest } from "./lib/block-replay.ts";
import { option, publish, table } from "./lib/report.ts";

// Hit rates of eviction policies over the blocks of a trace in Mooncake's form (--trace FILE), and how long a day of it takes.
const CAPACITIES = [1000, 5000, 10_000, 30_000, 50_000, 100_000];
const DAY_HOURS = 24;

const path = option("trace", "");
if (path === "") {
  throw new Error(
    "give --trace FILE: lines of {timestamp, hash_ids}, e.g. FAST25-release/traces/conversation_trace.jsonl of kvcache-ai/Mooncake",
  );
}
const trace = readTrace(path);
const percent = ({ hits, asked }: ReplayResult) => ((100 * hits) / asked).toFixed(3);
const policies: readonly { readonly name: string; readonly of: (slotCount: number) => EvictionPolicy }[] = [
  { name: "LRU", of: (slotCount) => new LruPolicy(slotCount) },
  { name: "S3-FIFO", of: (slotCount) => new S3FifoPolicy(slotCount) },
  { name: "scored (default)", of: (slotCount) => new ScoredPolicy(slotCount) },
];
/** Hits of each policy, and what no policy can exceed. */
function hitRows(requests: readonly TracedRequest[]): string[][] {
  const blocks = requests.reduce((sum, { hash_ids }) => sum + hash_ids.length, 0);
  const infinite = percent(replay(requests, blocks, (slotCount) => new LruPolicy(slotCount)));
  const rows = policies.map(({ name, of }) => [
    name,
    ...CAPACITIES.map((capacity) => percent(replay(requests, capacity, of))),
  ]);
  return [...rows, ["infinite", ...CAPACITIES.map(() => infinite)]];
}

const heldOutPath = option("held-out", "");
const heldOut = heldOutPath === "" ? [] : readTrace(heldOutPath);

/** Admission at the second use, once the cache is full: what a disk tier that wears out would do. */
const admitted = CAPACITIES.map((capacity) => {
  const uses = new UseSketch(1 << 18);
  return replay(
    trace,
    capacity,
    (slotCount) => new ScoredPolicy(slotCount),
    (keyBits, isFull) => uses.add(keyBits) > 1 || !isFull,
  );
});
const all = CAPACITIES.map((capacity) => replay(trace, capacity, (slotCount) => new ScoredPolicy(slotCount)));

const day = repeated(trace, DAY_HOURS);
const started = performance.now();
const dayResult = replay(day, 100_000, (slotCount) => new ScoredPolicy(slotCount));
const daySeconds = (performance.now() - started) / 1e3;

const header = ["", ...CAPACITIES.map((capacity) => `${capacity / 1000}k`)];
publish(
  "eviction",
  "Which blocks leave a full store",
  `Mooncake's conversation trace (FAST'25): ${trace.length} requests in an hour, ${dayResult.asked / DAY_HOURS} blocks of 512 tokens. One cache before all
requests; a hit is a block that is held together with all blocks before it. Share of the blocks asked for, in percent, by capacity in blocks:

${table(header, hitRows(trace))}

The default is \`packages/core/src/eviction/scored-policy.ts\`: recency, plus two minutes for each doubling of a block's uses, those remembered
from before it was evicted among them, minus 4 ms for each token before it. Its two constants were chosen on this trace.${
    heldOut.length === 0
      ? ""
      : ` On one that they were not chosen on (--held-out, ${heldOut.length} requests):\n\n${table(header, hitRows(heldOut))}`
  }

Admission at the second use once the cache is full (what spares a disk), scored: hits in percent, and blocks written beside those without it:

${table(header, [
  ["hits", ...admitted.map(percent)],
  ["hits, all admitted", ...all.map(percent)],
  ["written", ...admitted.map(({ stored }) => `${(stored / 1000).toFixed(0)}k`)],
  ["written, all admitted", ...all.map(({ stored }) => `${(stored / 1000).toFixed(0)}k`)],
])}

A day (the hour ${DAY_HOURS} times, with other conversations each time) at 100k blocks: ${(dayResult.asked / 1e6).toFixed(1)} M blocks in ${daySeconds.toFixed(1)} s, hits ${percent(dayResult)} %.`,
);
