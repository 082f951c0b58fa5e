import { KvasirError, oneLine } from "@kvasir/core";
import type { GgufMetadata } from "./read-metadata.ts";

/** Metadata read by key and kind; a missing or wrong one fails with its name. */
export interface TypedMetadata {
  text(key: string): string;
  optionalText(key: string): string | undefined;
  integer(key: string): number;
  optionalInteger(key: string): number | undefined;
  optionalNumber(key: string): number | undefined;
  optionalFlag(key: string): boolean | undefined;
  texts(key: string): readonly string[];
  numbers(key: string): readonly number[];
  optionalIntegers(key: string): readonly number[] | undefined;
}

export function typedMetadata(file: string, metadata: GgufMetadata): TypedMetadata {
  const wrong = (key: string, expected: string) => {
    const message = metadata.has(key)
      ? `${file}: ${key} is not ${expected}`
      : `${file}: ${key} is missing; expected ${expected}`;
    return new KvasirError({ reason: "invalid_request", field: "model", message: oneLine(message) });
  };
  const integerFrom = (value: unknown) => {
    const number = typeof value === "bigint" ? Number(value) : value;
    return typeof number === "number" && Number.isSafeInteger(number) ? number : undefined;
  };
  const optional = <T>(key: string, expected: string, read: (value: unknown) => T | undefined): T | undefined => {
    if (!metadata.has(key)) return undefined;
    const value = read(metadata.get(key));
    if (value === undefined) throw wrong(key, expected);
    return value;
  };
  const required = <T>(key: string, expected: string, read: (value: unknown) => T | undefined): T => {
    const value = optional(key, expected, read);
    if (value === undefined) throw wrong(key, expected);
    return value;
  };
  const text = (value: unknown) => (typeof value === "string" ? value : undefined);
  const number = (value: unknown) => (typeof value === "number" ? value : undefined);
  const flag = (value: unknown) => (typeof value === "boolean" ? value : undefined);
  const listOf =
    <T>(read: (value: unknown) => T | undefined) =>
    (value: unknown) => {
      if (!Array.isArray(value)) return undefined;
      const items = value.map(read);
      return items.every((item): item is Awaited<T> => item !== undefined) ? (items as T[]) : undefined;
    };
  return {
    text: (key) => required(key, "text", text),
    optionalText: (key) => optional(key, "text", text),
    integer: (key) => required(key, "a whole number", integerFrom),
    optionalInteger: (key) => optional(key, "a whole number", integerFrom),
    optionalNumber: (key) => optional(key, "a number", number),
    optionalFlag: (key) => optional(key, "true or false", flag),
    texts: (key) => required(key, "a list of texts", listOf(text)),
    numbers: (key) => required(key, "a list of numbers", listOf(number)),
    optionalIntegers: (key) => optional(key, "a list of whole numbers", listOf(integerFrom)),
  };
}
