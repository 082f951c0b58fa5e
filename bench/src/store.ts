import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { median, option, publish, table } from "./lib/report.ts";
import { output, SIDECAR } from "./lib/run.ts";

// The store's two tiers beside memory and disk without it, what 10 M blocks cost, and a loop of kills. `--directory` is on the disk to measure.
const BENCH = join(dirname(SIDECAR), "kvasir-store-bench");
if (!existsSync(BENCH)) {
  throw new Error(`${BENCH} is missing; build it: cargo build --release -p kvasir-store, in services/sidecar`);
}
const kills = option("kills", "200");
const directory = mkdtempSync(join(option("directory", "/tmp"), "kvasir-store-bench-"));

type Round = Readonly<Record<string, number>>;
const speed = await measured<{ readonly value_bytes: number; readonly gb_per_s: readonly Round[] }>([
  ...["speed", "--directory", directory, "--rounds", option("rounds", "5")],
]);
const index = await measured<Round>(["index", "--blocks", option("blocks", "10000000")]);
const crash = await measured<Round>(["crash-loop", "--directory", join(directory, "crash"), "--kills", kills]);
const dd = ddRates();
rmSync(directory, { recursive: true });

const rates = (name: string) => speed.gb_per_s.map((round) => round[name] ?? Number.NaN);
const row = (title: string, name: string, limits: readonly (readonly [string, string])[]) => [
  title,
  median(rates(name)).toFixed(2),
  Math.max(...rates(name)).toFixed(2),
  limits.map(([limit, label]) => `${median(rates(limit)).toFixed(2)} ${label}`).join(", "),
];
const memoryLimits = [
  ["memcpy", "copy"],
  ["digest", "XXH3-128"],
] as const;

publish(
  "store",
  "The KV store's tiers, its index, and what kills leave",
  `Blocks of ${(speed.value_bytes / 2 ** 20).toFixed(2)} MiB (SmolLM2's shape in f32), 512 MiB a round, medians of ${speed.gb_per_s.length} rounds in which store and limits take turns. A put
to memory copies and digests; a put to disk ends with \`fdatasync\`; a get from disk (two at once) compares checksum, key and digest. The limit of the
disk is what \`dd bs=4M\` does, sequentially with \`fdatasync\`, with and without the page cache. Pages are dropped before every read.

${table(
  ["", "GB/s", "best", "limit in the same rounds, GB/s"],
  [
    row("memory, put", "memory_put", memoryLimits),
    row("memory, get", "memory_get", memoryLimits),
    row("disk, put (default: direct)", "disk_direct_put", [["raw_direct_write", "direct write"]]),
    row("disk, get (default: direct)", "disk_direct_get", [["raw_direct_read", "direct read"]]),
    row("disk, put, page cache", "disk_buffered_put", [["raw_buffered_write", "buffered write"]]),
    row("disk, get, page cache", "disk_buffered_get", [["raw_buffered_read", "buffered read"]]),
  ],
)}

dd itself, once, for comparison: ${dd}.

Index of ${(index.blocks ?? 0) / 1e6} M blocks on disk: ${((index.table_bytes ?? 0) / 2 ** 20).toFixed(0)} MiB, **${index.bytes_per_block?.toFixed(1)} bytes a block** (resident: ${((index.resident_bytes ?? 0) / 2 ** 20).toFixed(0)} MiB). A look-up takes
${index.get_nanos?.toFixed(0)} ns, one that misses ${index.miss_nanos?.toFixed(0)} ns, an insertion ${index.insert_nanos?.toFixed(0)} ns on average and ${((index.longest_insert_nanos ?? 0) / 1e6).toFixed(0)} ms at most, when a shard grows.

Crash loop: ${crash.kills} \`kill -9\` at random moments of a process that writes, removes and compacts (segments of 4 MiB, ${crash.segments_emptied} emptied on the way):
${crash.acknowledged} blocks acknowledged, ${crash.removals} removals answered, ${crash.reads_verified} reads compared byte for byte after reopening. None missing, none wrong,
none back after its removal. ${crash.whole_but_unacknowledged} reads found blocks that were whole though nobody had been told.`,
);

async function measured<T>(flags: readonly string[]): Promise<T> {
  return JSON.parse(await output(BENCH, flags)) as T;
}

function ddRates(): string {
  const file = join(directory, "dd");
  const rate = (flags: readonly string[]) => {
    const text = execFileSync("sh", ["-c", `dd ${flags.join(" ")} bs=4M 2>&1 | tail -n 1`], { encoding: "utf8" });
    return text.trim().split(", ").at(-1) ?? "?";
  };
  const direct = rate(["if=/dev/zero", `of=${file}`, "count=128", "oflag=direct", "conv=fdatasync"]);
  const buffered = rate(["if=/dev/zero", `of=${file}`, "count=128", "conv=fdatasync"]);
  return `direct write ${direct}, buffered write ${buffered}, direct read ${rate([`if=${file}`, "of=/dev/null", "iflag=direct"])}`;
}
