import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { KvasirError, oneLine } from "@kvasir/core";
import type { z } from "zod";

/** Larger than any tokenizer.json in use. */
const JSON_BYTES_MAX = 256 * 1024 * 1024;

/**
 * One JSON file of a model directory, checked against a schema; undefined when an optional file is absent. Fails with one line that names
 * the file and the key.
 */
export async function readModelJson<S extends z.ZodType>(
  modelDir: string,
  name: string,
  schema: S,
  presence: "required" | "optional",
): Promise<z.infer<S> | undefined> {
  const path = join(modelDir, name);
  let text: string;
  try {
    const bytes = await readFile(path);
    if (bytes.length > JSON_BYTES_MAX)
      throw wrong(`${path} has ${bytes.length} bytes; at most ${JSON_BYTES_MAX} are read`);
    text = bytes.toString("utf8");
  } catch (error) {
    if (error instanceof KvasirError) throw error;
    if (presence === "optional" && isMissing(error)) return undefined;
    const how = isMissing(error) ? "is missing; a model directory needs it" : `cannot be read: ${String(error)}`;
    throw wrong(`${path} ${how}`, error);
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw wrong(`${path} is not JSON: ${error instanceof Error ? error.message : String(error)}`, error);
  }
  const checked = schema.safeParse(value);
  if (checked.success) return checked.data;
  const issue = checked.error.issues[0];
  throw wrong(`${path}: ${issue?.path.join(".") || "the file"}: ${issue?.message ?? "is wrong"}`);
}

function wrong(message: string, cause?: unknown): KvasirError {
  return new KvasirError({ reason: "invalid_request", field: "model", message: oneLine(message), cause });
}

function isMissing(error: unknown): boolean {
  return error instanceof Error && "code" in error && error.code === "ENOENT";
}
