export type OptionType = "string" | "integer" | "bytes" | "boolean" | "address";

/** One option: a flag and its twin in the environment. The flag wins, then the environment, then the default. */
export interface OptionSpec {
  readonly type: OptionType;
  /** Name of the environment variable, e.g. `KVASIR_LISTEN`. */
  readonly env: string;
  /** As a person would type it, so that help shows it the same way. */
  readonly default?: string | number | boolean;
  readonly required?: boolean;
  /** May also be given without its flag; several are filled in the order they are defined. */
  readonly positional?: boolean;
  readonly choices?: readonly string[];
  /** Smallest and largest value of an integer or of bytes, both included. */
  readonly min?: number;
  readonly max?: number;
  /** One line; a tunable says what gets worse if larger and if smaller. */
  readonly help: string;
}

export type OptionSpecs = Readonly<Record<string, OptionSpec>>;

type ValueOf<S extends OptionSpec> = S["type"] extends "integer" | "bytes"
  ? number
  : S["type"] extends "boolean"
    ? boolean
    : S extends { readonly choices: readonly (infer Choice)[] }
      ? Choice
      : string;

type IsPresent<S extends OptionSpec> = S extends { readonly required: true }
  ? true
  : S extends { readonly default: string | number | boolean }
    ? true
    : S["type"] extends "boolean"
      ? true
      : false;

/** Typed values by camelCase name. Without a default and not required: `undefined` when not given; a boolean is then false. */
export type OptionValues<S extends OptionSpecs> = {
  readonly [K in keyof S]: IsPresent<S[K]> extends true ? ValueOf<S[K]> : ValueOf<S[K]> | undefined;
};

/** `kvBytes` → `--kv-bytes`. */
export function flagFromName(name: string): string {
  return `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
}
