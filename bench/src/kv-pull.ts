import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { issueCertificates, issuedFiles } from "@kvasir/cli";
import { tlsFlags } from "@kvasir/cli/certificates";
import { startMooncake } from "./lib/mooncake.ts";
import { freePort } from "./lib/peer-gateway.ts";
import { option, publish, table } from "./lib/report.ts";
import { output, SIDECAR, startUntilLine } from "./lib/run.ts";

// KV from one sidecar process to another over loopback: the transfer code as it serves, digests and copies included, plain and with mutual TLS,
// beside iperf3's plain TCP and beside Mooncake's Transfer Engine over TCP. Ways alternate, so that a noisy moment hits them alike.
interface Pull {
  readonly bytes: number;
  readonly gb_per_s: number;
  /** Mooncake tells only the end. */
  readonly first_block_ms?: number;
}

/** Pulls of each size in a round, of which the median counts. */
const PULLS_EACH = 5;
const SIZES = [64 << 10, 1 << 20, 16 << 20, 1 << 30];

const SOURCE = { role: "prefill", id: "bench-source" } as const;
const SINK = { role: "decode", id: "bench-sink" } as const;

const rounds = Number(option("rounds", "3"));
const directory = mkdtempSync(join(tmpdir(), "kvasir-bench-"));
await issueCertificates({ directory, identities: [SOURCE, SINK], hours: 1 });
const certificatesOf = ({ id }: { readonly id: string }) => tlsFlags(issuedFiles(directory, id));
const sources = [
  await startUntilLine(SIDECAR, ["bench-pull", "serve", "--bytes", "1GiB"]),
  await startUntilLine(SIDECAR, ["bench-pull", "serve", "--bytes", "1GiB", ...certificatesOf(SOURCE)]),
] as const;
const mooncake = await startMooncake(SIZES, PULLS_EACH);
const ways: readonly { readonly name: string; readonly pull: () => Promise<readonly Pull[]> }[] = [
  { name: "plain", pull: () => pullFrom(sources[0].line, []) },
  { name: "TLS", pull: () => pullFrom(sources[1].line, certificatesOf(SINK)) },
  ...(mooncake === undefined ? [] : [{ name: "Mooncake", pull: mooncake.read }]),
];

/** By way and size: one measurement a round, with the TCP streams before and after it. */
const measured = new Map<string, (Pull & { readonly tcp: number | undefined })[]>();
const tcpRates = [await iperf()];
for (let round = 0; round < rounds; round++) {
  for (const { name, pull } of ways) {
    const pulls = await pull();
    tcpRates.push(await iperf());
    const [before, after] = tcpRates.slice(-2);
    const tcp = before === undefined || after === undefined ? undefined : (before + after) / 2;
    for (const pull of pulls) {
      const key = `${name} ${pull.bytes}`;
      measured.set(key, [...(measured.get(key) ?? []), { ...pull, tcp }]);
    }
  }
}
for (const { child } of sources) child.stdin?.end();
mooncake?.stop();
rmSync(directory, { recursive: true });

const isComplete = (rates: readonly (number | undefined)[]): rates is readonly number[] => !rates.includes(undefined);
publish(
  "kv-pull",
  "KV from sidecar to sidecar",
  `Loopback, one stream, blocks of 720 KiB (SmolLM2's shape in bf16), XXH3-128 over each frame on both sides; medians of ${rounds} rounds, in each of which
every way pulls each size ${PULLS_EACH} times after once to warm up, and the median counts. TLS is mutual TLS 1.3 with AES-128-GCM (rustls with ring).
${
  isComplete(tcpRates)
    ? `iperf3 (one plain TCP stream, two seconds) runs before and after each; a pull is compared with those two. Over the run: ${Math.min(...tcpRates).toFixed(2)} to ${Math.max(...tcpRates).toFixed(2)} GB/s, median ${median(tcpRates).toFixed(2)}.`
    : "iperf3 is not installed (Debian package iperf3), so there is no plain figure."
}

${
  mooncake === undefined
    ? "Mooncake's Transfer Engine could not be had (PyPI), so there is no figure of it."
    : "Mooncake's Transfer Engine reads over TCP from another process's registered memory into its own; it computes no digest and places no block."
}

${table(["", "size", "GB/s", "best GB/s", "of iperf3", "of Mooncake", "first block ms"], [...measured].map(rowOf))}`,
);

async function pullFrom(offer: string, flags: readonly string[]): Promise<readonly Pull[]> {
  const sizes = ["--sizes", SIZES.join(",")];
  const fetch = ["bench-pull", "fetch", "--offer", offer, "--repetitions", String(PULLS_EACH), ...sizes, ...flags];
  return JSON.parse(await output(SIDECAR, fetch)) as readonly Pull[];
}

function rowOf([key, pulls]: [string, readonly (Pull & { readonly tcp: number | undefined })[]]): string[] {
  const [name = "", bytes = ""] = key.split(" ");
  const firstBlocks = pulls.map((pull) => pull.first_block_ms);
  const size = SIZES.find((size) => Number(bytes) > size / 2 && Number(bytes) <= size);
  const peers = measured.get(`Mooncake ${size}`);
  const mooncakeRate = peers === undefined ? undefined : median(peers.map((pull) => pull.gb_per_s));
  const shares = pulls.map(({ gb_per_s, tcp }) => (tcp === undefined ? undefined : (100 * gb_per_s) / tcp));
  return [
    name,
    Number(bytes) < 1e6 ? `${(Number(bytes) / 1024).toFixed(0)} KiB` : `${(Number(bytes) / 2 ** 20).toFixed(0)} MiB`,
    median(pulls.map((pull) => pull.gb_per_s)).toFixed(2),
    Math.max(...pulls.map((pull) => pull.gb_per_s)).toFixed(2),
    isComplete(shares) ? `${median(shares).toFixed(0)} %` : "–",
    mooncakeRate === undefined ? "–" : `${(median(pulls.map((pull) => pull.gb_per_s)) / mooncakeRate).toFixed(2)}x`,
    isComplete(firstBlocks) ? median(firstBlocks).toFixed(2) : "–",
  ];
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}

/** GB/s of one plain TCP stream for two seconds. */
async function iperf(): Promise<number | undefined> {
  const port = String(await freePort());
  const server = output("iperf3", ["-s", "-1", "-B", "127.0.0.1", "-p", port]).catch(() => undefined);
  await new Promise((resolve) => setTimeout(resolve, 300));
  const text = await output("iperf3", ["-c", "127.0.0.1", "-p", port, "-t", "2", "-J"]).catch(() => undefined);
  if (text === undefined) return undefined;
  await server;
  const report = JSON.parse(text) as { end: { sum_received: { bits_per_second: number } } };
  return report.end.sum_received.bits_per_second / 8e9;
}
