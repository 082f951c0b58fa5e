import { execFile } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { freePort, type LocalCluster, type Prometheus, startPrometheus } from "@kvasir/cli";
import { afterAll, beforeAll, expect, test } from "vitest";
import { CACHE_DIR, chatBody, onFreePorts, post, startTiny } from "./support.ts";

const RULES = join(import.meta.dirname, "../../deploy/prometheus");
const FILES = ["alerts.yaml", "recordings.yaml"];

/** Prometheus is had from Debian's packages; elsewhere these tests are shown as skipped, unless it is installed. */
const isHad = knownPrograms() !== undefined || existsSync("/usr/bin/apt-get");

let programs: string;
let prometheus: Prometheus;
let cluster: LocalCluster;

beforeAll(async () => {
  if (!isHad) return;
  programs = findPrograms();
  const directory = mkdtempSync(join(tmpdir(), "kvasir-prometheus-"));
  const logFile = join(directory, "prometheus.log");
  prometheus = await onFreePorts(async () =>
    startPrometheus({ programs, port: await freePort(), intervalS: 1, directory, logFile }),
  );
  cluster = await startTiny({ prefill: 1, decode: 1, mixed: 1, stores: 1 });
  prometheus.setTargets(
    cluster.processes.flatMap(({ name, kind, adminAddress }) => (adminAddress ? [{ name, kind, adminAddress }] : [])),
  );
}, 90_000);
afterAll(async () => {
  await cluster?.stop();
  await prometheus?.stop();
});

function knownPrograms(): string | undefined {
  const cached = join(CACHE_DIR, "prometheus/usr/bin");
  return process.env.KVASIR_PROMETHEUS ?? (existsSync(join(cached, "promtool")) ? cached : undefined);
}

/** Throws, with what to do, where the programs are missing: this test then fails. */
function findPrograms(): string {
  const found = knownPrograms();
  if (found !== undefined) return found;
  const why = process.env.KVASIR_PROMETHEUS_MISSING ?? "it was not fetched yet";
  throw new Error(`this test needs Prometheus: ${why}; npm run prometheus fetches it`);
}

async function api<T>(path: string): Promise<T> {
  const answer = (await (await fetch(`${prometheus.url}/api/v1/${path}`)).json()) as { data: T; error?: string };
  if (answer.error !== undefined) throw new Error(`${path}: ${answer.error}`);
  return answer.data;
}

interface Vector {
  readonly result: readonly { readonly metric: Readonly<Record<string, string>>; readonly value: [number, string] }[];
}

async function query(expression: string): Promise<ReadonlyMap<string, number>> {
  const { result } = await api<Vector>(`query?query=${encodeURIComponent(expression)}`);
  return new Map(result.map(({ metric, value }) => [metric.instance ?? "", Number(value[1])]));
}

test.skipIf(!isHad)("the rules are sound, and fire when they should and not before", async () => {
  const promtool = join(programs, "promtool");
  const run = promisify(execFile);
  await run(promtool, ["check", "rules", ...FILES.map((file) => join(RULES, file))]);
  await run(promtool, ["test", "rules", join(RULES, "alerts.test.yaml")]);
});

test.skipIf(!isHad)("every process is scraped under its name, and requests are counted where they ran", async () => {
  await expect
    .poll(() => query('up{job=~"kvasir-.*"}'), { timeout: 20_000 })
    .toEqual(
      new Map([
        ["router-0", 1],
        ["gateway-0", 1],
        ["prefill-0", 1],
        ["decode-0", 1],
        ["mixed-0", 1],
        ["store-0", 1],
      ]),
    );
  for (const _ of [1, 2, 3]) await (await post(cluster, chatBody("hello", { ignore_eos: true }))).text();
  const generated = async () => [...(await query("vllm:generation_tokens_total")).values()].reduce((a, b) => a + b, 0);
  await expect.poll(generated, { timeout: 10_000 }).toBe(3 * 24);
  expect([...(await query('sum(vllm:request_success_total{finished_reason="length"})')).values()]).toEqual([3]);
});

test.skipIf(!isHad)("every metric that a rule asks for is there, and on a healthy cluster no alert fires", async () => {
  const text = FILES.map((file) => readFileSync(join(RULES, file), "utf8")).join("");
  const expressions = text.replaceAll(/^ *(summary|action):.*$/gm, "");
  const wanted = [...new Set([...expressions.matchAll(/\bkvasir_[a-z_]+/g)].map(([name]) => name))];
  expect(wanted.length).toBeGreaterThan(8);
  const missing = async () => {
    const present = new Set(await api<string[]>("label/__name__/values"));
    return wanted.filter((name) => !present.has(name));
  };
  await expect.poll(missing, { timeout: 10_000 }).toEqual([]);

  const { groups } = await api<{ groups: { rules: { name: string; state: string; health: string }[] }[] }>("rules");
  const rules = groups.flatMap((group) => group.rules);
  expect(rules).toHaveLength(text.match(/- (alert|record):/g)?.length ?? 0);
  await expect
    .poll(async () => {
      const evaluated = await api<{ groups: { rules: { name: string; state: string; health: string }[] }[] }>("rules");
      return evaluated.groups.flatMap((group) => group.rules).filter(({ health }) => health !== "ok");
    })
    .toEqual([]);
  expect(rules.filter(({ state }) => state === "firing")).toEqual([]);
});
