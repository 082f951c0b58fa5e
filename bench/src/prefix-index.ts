import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { PrefixIndex, PrefixMatches } from "@kvasir/core";
import {
  conversationHashes,
  type PrefixFigures,
  type PrefixWorkload,
  runPrefixWorkload,
} from "./lib/prefix-workload.ts";
import { percentile, publish, REPOSITORY, table } from "./lib/report.ts";

// The router's index of KV blocks: ten million blocks, twice each, over a thousand holders, and, at a size that both do in a minute, NVIDIA Dynamo's tree.
const LARGE: PrefixWorkload = {
  conversations: 2_440,
  length: 4_096,
  shared: 32,
  copies: 2,
  holders: 1_000,
  batch: 64,
  matches: 1_000,
};
const SMALL: PrefixWorkload = { ...LARGE, conversations: 122, holders: 100 };

const rows: string[][] = [];
const peer = dynamoFigures(SMALL);
const small = runPrefixWorkload(SMALL, new PrefixIndex({ blockCapacity: 1_000_000, holderCapacity: 128 })).figures;
rows.push(row("ours, 0.5 M blocks on two holders each of 100", small, peer));
if (peer !== undefined) rows.push(row("Dynamo RadixTree, the same", peer, undefined));

const index = new PrefixIndex({ blockCapacity: 28_000_000, holderCapacity: 1_024 });
const { figures: large, sequences } = runPrefixWorkload(LARGE, index);
rows.push(row("ours, 10 M blocks on two holders each of 1,000", large, undefined));
const rssGb = process.memoryUsage.rss() / 1e9;

const popular = conversationHashes(LARGE, LARGE.conversations + 1);
const staircase = conversationHashes(LARGE, LARGE.conversations + 2);
for (let holder = 0; holder < LARGE.holders; holder++) {
  // Every holder has one prompt whole, and of another one a piece of its own length.
  const cut = 33 + ((holder * 4_001) % (LARGE.length - 33));
  store(`h${holder}`, popular);
  store(`h${holder}`, staircase.subarray(0, cut * 16));
}
const shapes = [
  ["held by two holders, a shared beginning by all", conversationHashes(LARGE, 77)],
  ["held by all 1,000 holders", popular],
  ["held by 1,000 holders, each to another length", staircase],
] as const;
const shapeRows = shapes.map(([name, hashes]) => [name, ...matchTimes(hashes)]);

const held = index.blockCountOf("h1");
const removeStart = performance.now();
index.removeHolder("h1");
const removeMs = performance.now() - removeStart;
let worstSliceMs = 0;
let sweepMs = 0;
for (let more = true; more; ) {
  const start = performance.now();
  more = index.sweep(1_000);
  const sliceMs = performance.now() - start;
  worstSliceMs = Math.max(worstSliceMs, sliceMs);
  sweepMs += sliceMs;
}

publish(
  "prefix-index",
  "The router's prefix index",
  `Conversations of ${LARGE.length} blocks, the first ${LARGE.shared} shared by all, each held by ${LARGE.copies} holders, stored by events of ${LARGE.batch} blocks; then each look-up asks for all
blocks of one conversation over all holders. One thread. Dynamo's tree (ai-dynamo-runtime 1.6.1) is called from Python with the JSON events and lists that
its interface takes, so that its figures hold the parsing of those; its hashes have 8 bytes, ours 16. Memory is what the process grew by.

${table(["index", "blocks stored/s", "look-up p50 ms", "look-up p99 ms", "bytes a held block", "stored/s, ratio", "look-up p50, ratio"], rows)}

With ${(index.heldBlockCount / 1e6).toFixed(1)} M blocks held the process has ${rssGb.toFixed(2)} GB. A look-up of ${LARGE.length} blocks over all 1,000 holders:

${table(["prompt", "p50 ms", "p99 ms"], shapeRows)}

A holder of ${held} blocks is hidden in ${(removeMs * 1_000).toFixed(0)} µs and swept in ${sweepMs.toFixed(1)} ms, in slices of 1,000 blocks of ${worstSliceMs.toFixed(2)} ms at most.`,
);

function store(holderId: string, hashes: Uint8Array): void {
  const sequence = (sequences.get(holderId) ?? 0) + 1;
  sequences.set(holderId, sequence);
  const outcome = index.apply(holderId, { kind: "BlocksStored", epoch: 1, sequence, medium: "device", hashes });
  if (outcome.kind !== "applied") throw new Error(JSON.stringify(outcome));
}

function matchTimes(hashes: Uint8Array): string[] {
  const matches = new PrefixMatches(index.holderCapacity);
  const times = Array.from({ length: 300 }, (_, round) => {
    // Another look-up between, so that caches hold what they would in a busy router.
    index.match(conversationHashes(LARGE, (round * 131) % LARGE.conversations), matches);
    const start = performance.now();
    index.match(hashes, matches);
    return performance.now() - start;
  });
  return [percentile(times, 50).toFixed(3), percentile(times, 99).toFixed(3)];
}

function dynamoFigures(workload: PrefixWorkload): PrefixFigures | undefined {
  const python = join(REPOSITORY, ".cache", "dynamo", "bin", "python");
  if (!existsSync(python)) return undefined;
  const flags = ["conversations", "length", "shared", "copies", "batch", "matches"] as const;
  const output = execFileSync(
    python,
    [
      join(REPOSITORY, "bench/baselines/radix_tree.py"),
      ...flags.flatMap((name) => [`--${name}`, String(workload[name])]),
      ...["--workers", String(workload.holders)],
    ],
    { encoding: "utf8", env: { ...process.env, DYN_LOG: "error" } },
  );
  return JSON.parse(output.trim().split("\n").at(-1) ?? "") as PrefixFigures;
}

function row(name: string, figures: PrefixFigures, other: PrefixFigures | undefined): string[] {
  return [
    name,
    Math.round(figures.storedPerSecond).toLocaleString("en"),
    figures.matchP50Ms.toFixed(3),
    figures.matchP99Ms.toFixed(3),
    figures.bytesPerHeldBlock.toFixed(0),
    other === undefined ? "–" : `${(figures.storedPerSecond / other.storedPerSecond).toFixed(1)}x`,
    other === undefined ? "–" : `${(other.matchP50Ms / figures.matchP50Ms).toFixed(1)}x`,
  ];
}
