import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { defineOptions, type OptionValues, runMain, TLS_OPTIONS } from "@kvasir/config";
import { resolveModel } from "@kvasir/models";
import { loadModelFacts, loadTokenizer } from "@kvasir/tokenizer";
import { CLUSTER_OPTIONS } from "./connect-cluster.ts";
import { readDocuments } from "./profile/read-documents.ts";
import { writeStepProfile } from "./profile/step-profile.ts";
import { trainingItems } from "./profile/training-items.ts";

const REPOSITORY = join(import.meta.dirname, "../../..");

const SPECS = {
  what: {
    type: "string",
    env: "KVASIR_PROFILE",
    positional: true,
    required: true,
    choices: ["codec", "steps"],
    help: "codec: axes and tables of the KV codec's levels, from texts. steps: what steps cost on a running cluster, for replay and plan.",
  },
  model: {
    type: "string",
    env: "KVASIR_MODEL",
    default: "smollm2",
    help: "smollm2, tiny, a directory or a GGUF file.",
  },
  documents: {
    type: "string",
    env: "KVASIR_PROFILE_DOCUMENTS",
    help: "codec: JSON file, plain or .gz: an array of texts, or of objects with a text and maybe a title.",
  },
  out: { type: "string", env: "KVASIR_PROFILE_OUT", required: true, help: "File to write." },
  prompts: {
    type: "integer",
    env: "KVASIR_PROFILE_PROMPTS",
    default: 48,
    min: 8,
    help: "Prompts of six documents each. More: better tables, and a gigabyte of memory for every 40,000 tokens of a small model.",
  },
  layers: {
    type: "integer",
    env: "KVASIR_PROFILE_LAYERS",
    default: 3,
    min: 1,
    help: "Layers that dense levels rotate together. More: smaller and slower.",
  },
  levels: {
    type: "string",
    env: "KVASIR_PROFILE_LEVELS",
    default: "",
    help: "NAME:fast|dense:STEP[:BIT_PRICE],... Default: the sidecar's.",
  },
  kvDtype: {
    type: "string",
    env: "KVASIR_KV_DTYPE",
    default: "bf16",
    choices: ["f32", "f16", "bf16"],
    help: "Number format of KV where the profile will be used.",
  },
  weights: {
    type: "string",
    env: "KVASIR_WEIGHTS",
    default: "f32",
    choices: ["stored", "f32", "bf16", "q8_0"],
    help: "How matrices are kept meanwhile. Quantised products hide small errors behind their own.",
  },
  url: {
    type: "string",
    env: "KVASIR_PROFILE_URL",
    default: "http://127.0.0.1:8000",
    help: "steps: gateway to send requests to.",
  },
  promptTokens: {
    type: "integer",
    env: "KVASIR_PROFILE_PROMPT_TOKENS",
    default: 384,
    min: 32,
    help: "steps: longest prompt. Longer: a better fit of long ones, and more time.",
  },
  ...CLUSTER_OPTIONS,
  ...TLS_OPTIONS,
} as const;

const say = (line: string) => process.stderr.write(`${line}\n`);
const options = defineOptions("kvasir profile", "makes what sidecars or the simulator must know of a model", SPECS);

await runMain(options, (values) =>
  values.what === "codec"
    ? codecProfile(values)
    : writeStepProfile({ ...values, url: values.url.replace(/\/$/, "") }, say),
);

async function codecProfile(values: OptionValues<typeof SPECS>): Promise<void> {
  if (values.documents === undefined)
    throw new Error("a codec profile is made from texts; name a file with --documents");
  const model = await resolveModel(values.model, process.env.KVASIR_CACHE ?? join(REPOSITORY, ".cache"), say);
  const [tokenizer, facts] = [await loadTokenizer(model.directory), await loadModelFacts(model.directory)];
  const items = await trainingItems(tokenizer, facts, readDocuments(values.documents), values.prompts);
  const folder = mkdtempSync(join(tmpdir(), "kvasir-profile-"));
  try {
    const file = join(folder, "items.jsonl");
    writeFileSync(file, items.map((item) => `${JSON.stringify(item)}\n`).join(""));
    const flags = [
      ...["codec-profile", "--model", model.directory, "--items", file, "--out", values.out],
      ...["--kv-dtype", values.kvDtype, "--weights", values.weights, "--threads", `${availableParallelism()}`],
      ...["--layers", `${values.layers}`, ...(values.levels === "" ? [] : ["--levels", values.levels])],
    ];
    const sidecar =
      process.env.KVASIR_SIDECAR_BINARY ?? join(REPOSITORY, "services/sidecar/target/release/kvasir-sidecar");
    const child = spawn(sidecar, flags, { stdio: ["ignore", "inherit", "inherit"] });
    const code = await new Promise<number | null>((resolve, reject) => {
      child.on("error", reject);
      child.on("close", resolve);
    });
    if (code !== 0) throw new Error(`kvasir-sidecar codec-profile ended with code ${code}`);
    say(`${values.out} is made; give it to every sidecar of ${model.servedName}`);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
