import { readFileSync } from "node:fs";
import { gunzipSync } from "node:zlib";

export interface Document {
  readonly title?: string;
  readonly text: string;
}

/** Reads a JSON array of texts or of objects with `text` and maybe `title`; gzip by the name's ending. */
export function readDocuments(path: string): readonly Document[] {
  const bytes = readFileSync(path);
  const parsed: unknown = JSON.parse((path.endsWith(".gz") ? gunzipSync(bytes) : bytes).toString("utf8"));
  if (!Array.isArray(parsed)) throw new Error(`${path}: a JSON array of texts is wanted`);
  return parsed.map((entry: unknown, index) => {
    if (typeof entry === "string") return { text: entry };
    if (typeof entry === "object" && entry !== null && "text" in entry && typeof entry.text === "string") {
      const title = "title" in entry && typeof entry.title === "string" ? entry.title : undefined;
      return title === undefined ? { text: entry.text } : { title, text: entry.text };
    }
    throw new Error(`${path}: entry ${index} is neither a text nor an object with a text`);
  });
}
