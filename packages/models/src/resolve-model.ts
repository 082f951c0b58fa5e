import { existsSync, statSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { KvasirError } from "@kvasir/core";
import { importGguf } from "./gguf/import-gguf.ts";
import { ensureSmollm2, type Progress } from "./smollm2.ts";
import { ensureTinyModel } from "./tiny/tiny-model.ts";

export interface ResolvedModel {
  readonly directory: string;
  /** What clients call it. */
  readonly servedName: string;
}

/** Models that this project can get by itself. */
export const KNOWN_MODELS = ["smollm2", "tiny"] as const;

/**
 * A model by what a person typed: a known name (fetched or made if it is not there), a directory, or a GGUF file (imported once into
 * `cacheDir/models`).
 */
export async function resolveModel(wanted: string, cacheDir: string, progress: Progress): Promise<ResolvedModel> {
  const modelsDir = join(cacheDir, "models");
  if (wanted === "tiny") return { directory: await ensureTinyModel(modelsDir), servedName: "tiny" };
  if (wanted === "smollm2") {
    return { directory: await ensureSmollm2(modelsDir, join(cacheDir, "downloads"), progress), servedName: "smollm2" };
  }
  const path = resolve(wanted);
  if (!existsSync(path)) {
    const message = `--model ${wanted}: there is no such file, directory or known model (${KNOWN_MODELS.join(", ")})`;
    throw new KvasirError({ reason: "invalid_request", field: "model", message });
  }
  if (statSync(path).isDirectory()) return { directory: path, servedName: basename(path) };
  const servedName = basename(path).replace(/\.gguf$/i, "");
  const directory = join(modelsDir, servedName);
  if (!existsSync(join(directory, "config.json"))) {
    progress(`importing ${basename(path)}`);
    await importGguf(path, directory);
  }
  return { directory, servedName };
}
