import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { issueCertificates, issuedFiles } from "@kvasir/cli";
import { tlsFlags } from "@kvasir/cli/certificates";
import { freePort } from "./lib/peer-gateway.ts";
import { option, publish, table } from "./lib/report.ts";
import { output, SIDECAR, startUntilLine } from "./lib/run.ts";

// KV from one sidecar process to another over loopback: the transfer code as it serves, digests and copies included, plain and with mutual TLS,
// each beside iperf3's plain TCP before and after it.
interface Pull {
  readonly bytes: number;
  readonly gb_per_s: number;
  readonly best_gb_per_s: number;
  readonly first_block_ms: number;
}

const SOURCE = { role: "prefill", id: "bench-source" } as const;
const SINK = { role: "decode", id: "bench-sink" } as const;

const repetitions = option("repetitions", "5");
const directory = mkdtempSync(join(tmpdir(), "kvasir-bench-"));
await issueCertificates({ directory, identities: [SOURCE, SINK], hours: 1 });
const certificatesOf = ({ id }: { readonly id: string }) => tlsFlags(issuedFiles(directory, id));

const plain = await measure([], []);
const encrypted = await measure(certificatesOf(SOURCE), certificatesOf(SINK));
rmSync(directory, { recursive: true });

const beside = (iperf: readonly (number | undefined)[]) => iperf.map((rate) => rate?.toFixed(2) ?? "–").join(" and ");
publish(
  "kv-pull",
  "KV from sidecar to sidecar",
  `Loopback, one stream, blocks of 720 KiB (SmolLM2's shape in bf16), XXH3-128 over each frame on both sides; medians of ${repetitions} pulls after one that warms up.
With TLS: mutual TLS 1.3, AES-128-GCM (rustls with ring).
${
  plain.iperf.includes(undefined)
    ? "iperf3 is not installed (Debian package iperf3), so there is no plain figure."
    : `iperf3 (one plain TCP stream, GB/s before and after): ${beside(plain.iperf)} around the plain pulls, ${beside(encrypted.iperf)} around those with TLS.`
}

${table(["", "size", "GB/s", "best GB/s", "of iperf3", "first block ms"], [...rowsOf("plain", plain), ...rowsOf("TLS", encrypted)])}`,
);

async function measure(sourceFlags: readonly string[], sinkFlags: readonly string[]) {
  const before = await iperf();
  const { line, child } = await startUntilLine(SIDECAR, ["bench-pull", "serve", "--bytes", "1GiB", ...sourceFlags]);
  const fetch = ["bench-pull", "fetch", "--offer", line, "--repetitions", repetitions, ...sinkFlags];
  const pulls = JSON.parse(await output(SIDECAR, fetch)) as readonly Pull[];
  child.stdin?.end();
  return { pulls, iperf: [before, await iperf()] };
}

function rowsOf(name: string, { pulls, iperf }: Awaited<ReturnType<typeof measure>>): string[][] {
  const rates = iperf.filter((rate) => rate !== undefined);
  const tcp = rates.length < 2 ? undefined : rates.reduce((sum, rate) => sum + rate, 0) / rates.length;
  return pulls.map((pull) => [
    name,
    pull.bytes < 1e6 ? `${(pull.bytes / 1024).toFixed(0)} KiB` : `${(pull.bytes / 2 ** 20).toFixed(0)} MiB`,
    pull.gb_per_s.toFixed(2),
    pull.best_gb_per_s.toFixed(2),
    tcp === undefined ? "–" : `${((100 * pull.gb_per_s) / tcp).toFixed(0)} %`,
    pull.first_block_ms.toFixed(2),
  ]);
}

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
