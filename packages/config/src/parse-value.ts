import type { OptionSpec } from "./option-spec.ts";

export type ValueOutcome =
  | { readonly kind: "value"; readonly value: string | number | boolean }
  | { readonly kind: "wrong"; readonly message: string };

const UNIT_BYTES: Readonly<Record<string, number>> = {
  "": 1,
  b: 1,
  kb: 1e3,
  mb: 1e6,
  gb: 1e9,
  tb: 1e12,
  kib: 2 ** 10,
  mib: 2 ** 20,
  gib: 2 ** 30,
  tib: 2 ** 40,
};

/** Reads one value. The message of a wrong one names the option (`label`), the text and what would be right. */
export function parseValue(label: string, text: string, spec: OptionSpec): ValueOutcome {
  const wrong = (expected: string): ValueOutcome => ({
    kind: "wrong",
    message: `${label} is ${JSON.stringify(text)}; use ${expected}`,
  });
  switch (spec.type) {
    case "string": {
      if (spec.choices !== undefined && !spec.choices.includes(text)) return wrong(orList(spec.choices));
      return { kind: "value", value: text };
    }
    case "boolean": {
      const lower = text.toLowerCase();
      if (lower === "true" || lower === "1") return { kind: "value", value: true };
      if (lower === "false" || lower === "0" || lower === "") return { kind: "value", value: false };
      return wrong("true or false");
    }
    case "integer": {
      if (!/^[+-]?\d+$/.test(text) || !Number.isSafeInteger(Number(text))) return wrong(`an integer${range(spec)}`);
      return inRange(Number(text), spec) ? { kind: "value", value: Number(text) } : wrong(`an integer${range(spec)}`);
    }
    case "bytes": {
      const bytes = bytesFromText(text);
      if (bytes === undefined) return wrong(`a size like 512MiB or 2GiB${range(spec)}`);
      return inRange(bytes, spec) ? { kind: "value", value: bytes } : wrong(`a size${range(spec)}`);
    }
    case "address":
      return isAddress(text) ? { kind: "value", value: text } : wrong("host:port, e.g. 127.0.0.1:0");
  }
}

/** `512MiB` → 536870912. Undefined when it is no whole number of bytes. */
export function bytesFromText(text: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)\s*([a-z]*)$/i.exec(text.trim());
  const unit = UNIT_BYTES[match?.[2]?.toLowerCase() ?? "none"];
  if (match?.[1] === undefined || unit === undefined) return undefined;
  const bytes = Number(match[1]) * unit;
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

function isAddress(text: string): boolean {
  const match = /^(\[[0-9a-fA-F:.%]+\]|[^\s:/[\]]+):(\d{1,5})$/.exec(text);
  return match !== null && Number(match[2]) <= 65_535;
}

function inRange(value: number, spec: OptionSpec): boolean {
  return value >= (spec.min ?? Number.NEGATIVE_INFINITY) && value <= (spec.max ?? Number.POSITIVE_INFINITY);
}

function range(spec: OptionSpec): string {
  if (spec.min !== undefined && spec.max !== undefined) return ` from ${spec.min} to ${spec.max}`;
  if (spec.min !== undefined) return ` of at least ${spec.min}`;
  return spec.max === undefined ? "" : ` of at most ${spec.max}`;
}

function orList(items: readonly string[]): string {
  if (items.length < 2) return items.join("");
  return `${items.slice(0, -1).join(", ")} or ${items.at(-1)}`;
}
