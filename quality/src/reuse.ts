import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { defineOptions, runMain } from "@kvasir/config";
import { resolveModel } from "@kvasir/models";
import { loadModelFacts, loadTokenizer } from "@kvasir/tokenizer";
import { loadSet, SET_NAMES, type SetName } from "./datasets.ts";
import { itemFrom } from "./item.ts";
import type { Question } from "./question.ts";
import { runQuality } from "./run-sidecar.ts";
import { findAnswerable } from "./seams-search.ts";
import { HEADER, rowOf, type Summary, summarize } from "./summary.ts";

const REPOSITORY = join(import.meta.dirname, "../..");

const options = defineOptions("npm run quality -- reuse", "what answers lose when documents' KV is reused", {
  model: {
    type: "string",
    env: "KVASIR_MODEL",
    default: "smollm2",
    help: "smollm2, tiny, a directory or a GGUF file.",
  },
  set: {
    type: "string",
    env: "KVASIR_QUALITY_SET",
    default: "all",
    choices: ["all", ...SET_NAMES],
    help: "Questions: seams are made here, hotpot and musique are read from --data.",
  },
  data: { type: "string", env: "KVASIR_DATA", help: "Directory with rag/: HotpotQA and MuSiQue as JSON." },
  limit: {
    type: "integer",
    env: "KVASIR_QUALITY_LIMIT",
    default: 50,
    min: 1,
    help: "Questions of each set. Larger: slower, less noise.",
  },
  methods: {
    type: "string",
    env: "KVASIR_QUALITY_METHODS",
    default: "",
    help: "Names with commas between. Default: all.",
  },
  maxTokens: { type: "integer", env: "KVASIR_QUALITY_TOKENS", default: 20, min: 1, help: "Longest answer." },
  kvDtype: {
    type: "string",
    env: "KVASIR_KV_DTYPE",
    default: "f32",
    choices: ["f32", "f16", "bf16"],
    help: "Number format of KV.",
  },
  weights: {
    type: "string",
    env: "KVASIR_WEIGHTS",
    default: "stored",
    choices: ["stored", "f32", "bf16", "q8_0"],
    help: "How matrices are kept.",
  },
  threads: { type: "integer", env: "KVASIR_THREADS", min: 1, help: "Compute threads. Default: one for each core." },
  write: {
    type: "boolean",
    env: "KVASIR_QUALITY_WRITE",
    help: "Keep the figures as docs/results/reuse.md and reuse.json.",
  },
  findSeams: {
    type: "integer",
    env: "KVASIR_FIND_SEAMS",
    min: 1,
    help: "Look for so many seam questions that a full pass answers, and keep their numbers.",
  },
});

await runMain(options, async (values) => {
  const say = (line: string) => process.stderr.write(`${line}\n`);
  const model = await resolveModel(values.model, process.env.KVASIR_CACHE ?? join(REPOSITORY, ".cache"), say);
  const tokenizer = await loadTokenizer(model.directory);
  const facts = await loadModelFacts(model.directory);
  const common = {
    sidecar: process.env.KVASIR_SIDECAR_BINARY ?? join(REPOSITORY, "services/sidecar/target/release/kvasir-sidecar"),
    model: model.directory,
    kvDtype: values.kvDtype,
    weights: values.weights,
    threads: values.threads ?? availableParallelism(),
  };
  const itemsOf = (questions: readonly Question[]) =>
    Promise.all(questions.map((question) => itemFrom(tokenizer, facts, question, values.maxTokens)));
  const textOf = (ids: readonly number[]) => {
    const detokenizer = tokenizer.createDetokenizer();
    return detokenizer.push(ids) + detokenizer.flush();
  };
  if (values.findSeams !== undefined) {
    const indices = await findAnswerable(
      values.findSeams,
      async (questions) => runQuality({ ...common, items: await itemsOf(questions), methods: ["full"] }),
      textOf,
      say,
    );
    writeFileSync(
      join(import.meta.dirname, "seams-answerable.json"),
      `${JSON.stringify({ model: model.servedName, indices })}\n`,
    );
    return;
  }
  const sets: readonly SetName[] = values.set === "all" ? SET_NAMES : [values.set];
  const found: { set: SetName; summaries: readonly Summary[] }[] = [];
  for (const set of sets) {
    const questions = loadSet(set, values.data).slice(0, values.limit);
    const started = performance.now();
    const lines = await runQuality({
      ...common,
      items: await itemsOf(questions),
      methods: values.methods === "" ? [] : values.methods.split(","),
      progress: (done, total) => {
        if (done % 10 === 0 || done === total)
          say(`${set}: ${done}/${total} questions, ${Math.round((performance.now() - started) / 1000)} s`);
      },
    });
    found.push({
      set,
      summaries: summarize(lines, new Map(questions.map((question) => [question.id, question])), textOf),
    });
  }
  const commit = execFileSync("git", ["rev-parse", "--short", "HEAD"], { cwd: REPOSITORY, encoding: "utf8" }).trim();
  const about = {
    date: new Date().toISOString().slice(0, 10),
    commit,
    model: model.servedName,
    ...{ kvDtype: values.kvDtype, weights: values.weights, maxTokens: values.maxTokens, limit: values.limit },
  };
  const page = pageOf(about, found);
  process.stdout.write(page);
  if (!values.write) return;
  const results = join(REPOSITORY, "docs/results");
  mkdirSync(results, { recursive: true });
  writeFileSync(join(results, "reuse.md"), page);
  writeFileSync(join(results, "reuse.json"), `${JSON.stringify({ ...about, sets: found }, null, 1)}\n`);
  say("written to docs/results/reuse.md and reuse.json");
});

function pageOf(
  about: Readonly<Record<string, unknown>>,
  sets: readonly { set: string; summaries: readonly Summary[] }[],
): string {
  const facts = Object.entries(about).map(([name, value]) => `${name} ${value}`);
  const tables = sets.map(({ set, summaries }) => {
    const rows = [HEADER, HEADER.map(() => "---"), ...summaries.map(rowOf)].map((cells) => `| ${cells.join(" | ")} |`);
    return `## ${set}: ${summaries[0]?.questions ?? 0} questions, ${summaries[0]?.places ?? 0} places\n\n${rows.join("\n")}\n`;
  });
  return `# What answers lose when documents' KV is reused

\`npm run quality -- reuse\`, ${facts.join(", ")}. What is measured and how: [quality.md](../quality.md).

${tables.join("\n")}`;
}
