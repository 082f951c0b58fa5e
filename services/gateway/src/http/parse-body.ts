import { RequestError } from "./openai-error.ts";

const UTF8 = new TextDecoder("utf-8", { fatal: true });

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
    value = JSON.parse(text);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new RequestError(`body is not JSON: ${why}`, { param: "body", code: "invalid_json" });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new RequestError("body is not a JSON object; send {...}", { param: "body", code: "invalid_json" });
  }
  return value;
}
