import { RequestError } from "./openai-error.ts";

const UTF8 = new TextDecoder("utf-8", { fatal: true });

/** A seed that a double may not hold; only then each value is looked at. */
const LONG_SEED = /"seed"\s*:\s*-?\d{16}/;

/** `JSON.parse` with the source text of each value, which TypeScript's own types do not know yet. */
const parseExactly = JSON.parse as (
  text: string,
  reviver: (key: string, value: unknown, context: { readonly source?: string }) => unknown,
) => unknown;

function exactSeed(key: string, value: unknown, { source = "" }: { readonly source?: string }): unknown {
  const rounded = key === "seed" && typeof value === "number" && !Number.isSafeInteger(value);
  return rounded && /^-?\d{1,20}$/.test(source) ? BigInt(source) : value;
}

/** A JSON object from a request's bytes; anything else is refused naming `body`. */
export function parseBody(bytes: Uint8Array): object {
  let text: string;
  try {
    text = UTF8.decode(bytes);
  } catch {
    throw new RequestError("body is not valid UTF-8; send JSON in UTF-8", { param: "body", code: "invalid_utf8" });
  }
  let value: unknown;
  try {
    value = LONG_SEED.test(text) ? parseExactly(text, exactSeed) : JSON.parse(text);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new RequestError(`body is not JSON: ${why}`, { param: "body", code: "invalid_json" });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new RequestError("body is not a JSON object; send {...}", { param: "body", code: "invalid_json" });
  }
  return value;
}
