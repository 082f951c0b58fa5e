import { execFile } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const SIDECAR_BINARY =
  process.env.KVASIR_SIDECAR_BINARY ??
  fileURLToPath(new URL("../../../services/sidecar/target/release/kvasir-sidecar", import.meta.url));

export interface CodecProfileWish {
  readonly model: string;
  readonly kvDtype: "f32" | "f16" | "bf16";
  /** Where it and what it is made from are written. */
  readonly directory: string;
}

/** A codec profile of a small model from the model's own KV, with one lossy level, `quick`. Answers with the file. */
export async function makeCodecProfile({ model, kvDtype, directory }: CodecProfileWish): Promise<string> {
  const items = Array.from({ length: 8 }, (_, seed) => ({
    ...{ id: `${seed}`, prefix: Array.from({ length: 120 }, (_, i) => (i * 7 + seed * 13) % 100), documents: [] },
    ...{ suffix: [1, 2], max_tokens: 2, stop_token_ids: [] },
  }));
  const [listed, out] = [join(directory, "items.jsonl"), join(directory, "tiny.kvcp")];
  writeFileSync(listed, items.map((item) => `${JSON.stringify(item)}\n`).join(""));
  const flags = ["--model", model, "--items", listed, "--out", out, "--kv-dtype", kvDtype, "--sensitivity-items", "0"];
  const levels = ["--levels", "quick:fast:0.1", "--kv-bytes", "4MiB", "--threads", "1", "--block-size", "16"];
  await promisify(execFile)(SIDECAR_BINARY, ["codec-profile", ...flags, ...levels]);
  return out;
}
