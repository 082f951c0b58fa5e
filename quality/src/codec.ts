import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { defineOptions, runMain } from "@kvasir/config";
import { resolveModel } from "@kvasir/models";
import { loadModelFacts, loadTokenizer } from "@kvasir/tokenizer";
import { codecPage } from "./codec-page.ts";
import { codecPlot } from "./codec-plot.ts";
import { type CodecLine, summarizeCodec } from "./codec-summary.ts";
import { loadSet } from "./datasets.ts";
import { type Item, itemFrom } from "./item.ts";
import type { Question } from "./question.ts";

const REPOSITORY = join(import.meta.dirname, "../..");

const options = defineOptions(
  "npm run quality -- codec",
  "what answers lose, and bytes are saved, when KV is encoded",
  {
    model: {
      type: "string",
      env: "KVASIR_MODEL",
      default: "smollm2",
      help: "smollm2, tiny, a directory or a GGUF file.",
    },
    data: {
      type: "string",
      env: "KVASIR_DATA",
      required: true,
      help: "Directory with rag/: HotpotQA and MuSiQue as JSON.",
    },
    codecProfile: {
      type: "string",
      env: "KVASIR_CODEC_PROFILE",
      required: true,
      help: "Made by `npm run kvasir -- profile codec`, from other documents than HotpotQA's.",
    },
    limit: { type: "integer", env: "KVASIR_QUALITY_LIMIT", default: 30, min: 1, help: "Questions. More: less noise." },
    fit: {
      type: "integer",
      env: "KVASIR_QUALITY_FIT",
      default: 16,
      min: 1,
      help: "MuSiQue prompts that the tables of CacheGen's scheme are made from.",
    },
    methods: {
      type: "string",
      env: "KVASIR_QUALITY_METHODS",
      default: "",
      help: "Names with commas between. Default: all.",
    },
    maxTokens: { type: "integer", env: "KVASIR_QUALITY_TOKENS", default: 20, min: 1, help: "Longest answer." },
    chunkTokens: {
      type: "integer",
      env: "KVASIR_CHUNK_TOKENS",
      default: 256,
      min: 1,
      max: 1024,
      help: "Tokens of a chunk.",
    },
    write: {
      type: "boolean",
      env: "KVASIR_QUALITY_WRITE",
      help: "Keep as docs/results/codec.md, codec.json and codec.svg.",
    },
  },
);

await runMain(options, async (values) => {
  const say = (line: string) => process.stderr.write(`${line}\n`);
  const model = await resolveModel(values.model, process.env.KVASIR_CACHE ?? join(REPOSITORY, ".cache"), say);
  const [tokenizer, facts] = [await loadTokenizer(model.directory), await loadModelFacts(model.directory)];
  if (!existsSync(values.codecProfile))
    throw new Error(`${values.codecProfile} is not there; make it with kvasir profile codec`);
  const itemsOf = (questions: readonly Question[]) =>
    Promise.all(questions.map((question) => itemFrom(tokenizer, facts, question, values.maxTokens)));
  const [items, fitItems] = [
    await itemsOf(loadSet("hotpot", values.data).slice(0, values.limit)),
    await itemsOf(loadSet("musique", values.data).slice(0, values.fit)),
  ];
  const started = performance.now();
  const lines = await runCodec(
    {
      model: model.directory,
      items,
      fitItems,
      profile: values.codecProfile,
      methods: values.methods,
      chunkTokens: values.chunkTokens,
    },
    (done) => {
      if (done % 5 === 0)
        say(`${done}/${items.length} questions, ${Math.round((performance.now() - started) / 1000)} s`);
    },
  );
  const summaries = summarizeCodec(lines);
  const commit = execFileSync("git", ["rev-parse", "--short", "HEAD"], { cwd: REPOSITORY, encoding: "utf8" }).trim();
  const about = {
    date: new Date().toISOString().slice(0, 10),
    commit,
    model: model.servedName,
    questions: items.length,
    chunkTokens: values.chunkTokens,
  };
  const page = codecPage(about, summaries);
  process.stdout.write(page);
  if (!values.write) return;
  const results = join(REPOSITORY, "docs/results");
  mkdirSync(results, { recursive: true });
  writeFileSync(join(results, "codec.md"), page);
  writeFileSync(join(results, "codec.json"), `${JSON.stringify({ ...about, methods: summaries }, null, 1)}\n`);
  writeFileSync(join(results, "codec.svg"), codecPlot(summaries));
  say("written to docs/results/codec.md, codec.json and codec.svg");
});

interface CodecRun {
  readonly model: string;
  readonly items: readonly Item[];
  readonly fitItems: readonly Item[];
  readonly profile: string;
  readonly methods: string;
  readonly chunkTokens: number;
}

/** Runs the sidecar's `quality-codec` command. Weights in f32: quantised products would hide small errors behind their own. */
async function runCodec(run: CodecRun, progress: (done: number) => void): Promise<CodecLine[]> {
  const folder = mkdtempSync(join(tmpdir(), "kvasir-quality-"));
  try {
    const write = (name: string, items: readonly Item[]) => {
      writeFileSync(join(folder, name), items.map((item) => `${JSON.stringify(item)}\n`).join(""));
      return join(folder, name);
    };
    const sidecar =
      process.env.KVASIR_SIDECAR_BINARY ?? join(REPOSITORY, "services/sidecar/target/release/kvasir-sidecar");
    const flags = [
      ...["quality-codec", "--model", run.model, "--kv-dtype", "bf16", "--weights", "f32", "--kv-bytes", "256MiB"],
      ...["--threads", `${availableParallelism()}`, "--codec-profile", run.profile],
      ...["--items", write("items.jsonl", run.items), "--fit-items", write("fit.jsonl", run.fitItems)],
      ...["--chunk-tokens", `${run.chunkTokens}`, ...(run.methods === "" ? [] : ["--methods", run.methods])],
    ];
    const child = spawn(sidecar, flags, { stdio: ["ignore", "pipe", "inherit"] });
    const ended = new Promise<number | null>((resolve, reject) => {
      child.on("error", reject);
      child.on("close", resolve);
    });
    const lines: CodecLine[] = [];
    const seen = new Set<string>();
    for await (const text of createInterface({ input: child.stdout })) {
      const line = JSON.parse(text) as CodecLine;
      lines.push(line);
      if (!seen.has(line.id)) progress(seen.add(line.id).size);
    }
    const code = await ended;
    if (code !== 0) throw new Error(`kvasir-sidecar quality-codec ended with code ${code}`);
    return lines;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
