import { freePort } from "./lib/peer-gateway.ts";
import { option, publish, table } from "./lib/report.ts";
import { output, SIDECAR, startUntilLine } from "./lib/run.ts";

// KV from one sidecar process to another over loopback: the transfer code as it serves, digests and copies included, beside iperf3's plain TCP
// before and after it.
interface Pull {
  readonly bytes: number;
  readonly gb_per_s: number;
  readonly best_gb_per_s: number;
  readonly first_block_ms: number;
}

const repetitions = option("repetitions", "5");
const before = await iperf();
const { line, child } = await startUntilLine(SIDECAR, ["bench-pull", "serve", "--bytes", "1GiB"]);
const pulls = JSON.parse(
  await output(SIDECAR, ["bench-pull", "fetch", "--offer", line, "--repetitions", repetitions]),
) as readonly Pull[];
child.stdin?.end();
const after = await iperf();
const plain = before === undefined || after === undefined ? undefined : (before + after) / 2;

const rows = pulls.map((pull) => [
  pull.bytes < 1e6 ? `${(pull.bytes / 1024).toFixed(0)} KiB` : `${(pull.bytes / 2 ** 20).toFixed(0)} MiB`,
  pull.gb_per_s.toFixed(2),
  pull.best_gb_per_s.toFixed(2),
  plain === undefined ? "–" : `${((100 * pull.gb_per_s) / plain).toFixed(0)} %`,
  pull.first_block_ms.toFixed(2),
]);
publish(
  "kv-pull",
  "KV from sidecar to sidecar",
  `Loopback, one stream, blocks of 720 KiB (SmolLM2's shape in bf16), XXH3-128 over each frame on both sides; medians of ${repetitions} pulls after one that warms up.
${plain === undefined ? "iperf3 is not installed (Debian package iperf3), so there is no plain figure." : `iperf3 (one TCP stream, same run): ${before?.toFixed(2)} GB/s before, ${after?.toFixed(2)} GB/s after.`}

${table(["size", "GB/s", "best GB/s", "of iperf3", "first block ms"], rows)}`,
);

/** GB/s of one plain TCP stream for three seconds. */
async function iperf(): Promise<number | undefined> {
  const port = String(await freePort());
  const server = output("iperf3", ["-s", "-1", "-B", "127.0.0.1", "-p", port]).catch(() => undefined);
  await new Promise((resolve) => setTimeout(resolve, 300));
  const text = await output("iperf3", ["-c", "127.0.0.1", "-p", port, "-t", "3", "-J"]).catch(() => undefined);
  if (text === undefined) return undefined;
  await server;
  const report = JSON.parse(text) as { end: { sum_received: { bits_per_second: number } } };
  return report.end.sum_received.bits_per_second / 8e9;
}
