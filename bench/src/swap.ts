import { median, option, publish, table } from "./lib/report.ts";
import { output, SIDECAR } from "./lib/run.ts";

// KV blocks of a CPU's pool to host slots and back, beside a plain copy of as many bytes in the same rounds.
interface Swapped {
  readonly block_bytes: number;
  readonly blocks: number;
  readonly gb_per_s: readonly Readonly<Record<string, number>>[];
}

const flags = ["bench-swap", "--bytes", option("bytes", "256MiB"), "--rounds", option("rounds", "9")];
const swapped = JSON.parse(await output(SIDECAR, flags)) as Swapped;
const rates = (name: string) => swapped.gb_per_s.map((round) => round[name] ?? Number.NaN);
const row = (title: string, name: string) => {
  const shares = rates(name).map((rate, round) => rate / (rates("memcpy")[round] ?? Number.NaN));
  return [
    title,
    median(rates(name)).toFixed(2),
    Math.max(...rates(name)).toFixed(2),
    `${(median(shares) * 100).toFixed(0)} %`,
  ];
};

publish(
  "swap",
  "Swapping KV to host memory and back, on a CPU",
  `${swapped.blocks} blocks of ${(swapped.block_bytes / 2 ** 10).toFixed(0)} KiB (SmolLM2's shape in bf16), one thread, medians of ${swapped.gb_per_s.length} rounds in which all take turns; the share is the
median of each round's. Blocks in one run are copied 32 MiB at a time, blocks that lie apart each by itself. On a GPU: \`npm run gpu -- bench\`.

${table(
  ["", "GB/s", "best", "of the copy"],
  [
    row("plain copy", "memcpy"),
    row("swap out, one run", "out_run"),
    row("swap out, blocks apart", "out_apart"),
    row("swap in, one run", "in_run"),
    row("swap in, blocks apart", "in_apart"),
  ],
)}`,
);
