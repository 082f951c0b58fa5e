import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

/** The repository's root. */
export const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), "../..");

/** What is fetched or made lies here; it may be removed at any time. KVASIR_CACHE moves it. */
export const CACHE = resolve(process.env.KVASIR_CACHE || join(ROOT, ".cache"));

export const SIDECAR_DIR = join(ROOT, "services/sidecar");

/** Cargo's target directory; CARGO_TARGET_DIR moves it. */
export const SIDECAR_TARGET = resolve(process.env.CARGO_TARGET_DIR || join(SIDECAR_DIR, "target"));

export const SIDECAR_BINARY = join(SIDECAR_TARGET, "release/kvasir-sidecar");
