import { execFile } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { resolveModel } from "@kvasir/models";
import { loadModelFacts, loadTokenizer } from "@kvasir/tokenizer";
import { afterAll, expect, test } from "vitest";
import { type CodecLine, summarizeCodec } from "./codec-summary.ts";
import { itemFrom } from "./item.ts";
import { seamQuestion } from "./seams.ts";

const REPOSITORY = join(import.meta.dirname, "../..");
const SIDECAR = process.env.KVASIR_SIDECAR_BINARY ?? join(REPOSITORY, "services/sidecar/target/release/kvasir-sidecar");
const folder = mkdtempSync(join(tmpdir(), "kvasir-codec-"));
afterAll(() => rmSync(folder, { recursive: true }));
const run = promisify(execFile);

test("a profile of the tiny model: exact levels lose nothing, finer ones less than coarser ones, and all are smaller than raw", async () => {
  expect(existsSync(SIDECAR)).toBe(true);
  const model = await resolveModel("tiny", process.env.KVASIR_CACHE ?? join(REPOSITORY, ".cache"), () => undefined);
  const [tokenizer, facts] = [await loadTokenizer(model.directory), await loadModelFacts(model.directory)];
  const write = async (name: string, from: number, to: number) => {
    const numbers = Array.from({ length: to - from }, (_, index) => from + index);
    const items = await Promise.all(numbers.map((number) => itemFrom(tokenizer, facts, seamQuestion(number), 6)));
    writeFileSync(join(folder, name), items.map((item) => `${JSON.stringify(item)}\n`).join(""));
    return join(folder, name);
  };
  const engine = ["--model", model.directory, "--kv-dtype", "bf16", "--weights", "f32", "--threads", "1"];
  const profile = join(folder, "tiny.kvcp");
  const levels = "fast:fast:0.3,near:dense:0.1,coarse:dense:0.8";
  const made = await run(SIDECAR, [
    ...["codec-profile", ...engine, "--items", await write("train.jsonl", 0, 9), "--out", profile],
    ...["--levels", levels, "--sensitivity-items", "1"],
  ]);
  const report = JSON.parse(made.stdout) as { id: string; levels: { name: string; bits_per_value: number }[] };
  expect(report.id).toMatch(/^[0-9a-f]{32}$/);
  expect(report.levels.map(({ name }) => name)).toEqual(["fast", "near", "coarse"]);
  const measured = await run(SIDECAR, [
    ...["quality-codec", ...engine, "--items", await write("test.jsonl", 20, 23), "--codec-profile", profile],
    ...["--fit-items", await write("fit.jsonl", 30, 32), "--chunk-tokens", "64"],
  ]);
  const lines = measured.stdout.split("\n").filter((line) => line !== "");
  const summaries = new Map(
    summarizeCodec(lines.map((line) => JSON.parse(line) as CodecLine)).map((summary) => [summary.method, summary]),
  );
  const of = (method: string) => summaries.get(method) ?? expect.fail(`no line of ${method}`);
  for (const method of ["raw", "lossless"]) expect(of(method)).toMatchObject({ klMean: 0, identical: 1 });
  expect(of("raw").ratio).toBeLessThan(1);
  expect(of("lossless").ratio).toBeGreaterThan(1.3);
  expect(of("near").ratio).toBeGreaterThan(of("lossless").ratio);
  expect(of("coarse").ratio).toBeGreaterThan(of("near").ratio);
  expect(of("near").klMean).toBeLessThan(of("coarse").klMean);
  expect(of("uniform-4").ratio).toBeGreaterThan(of("uniform-8").ratio);
  expect(of("cachegen-0.75").ratio).toBeGreaterThan(of("cachegen-0.15").ratio);
}, 60_000);
