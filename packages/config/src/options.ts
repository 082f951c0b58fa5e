import { helpText } from "./help-text.ts";
import { nearestName } from "./nearest-name.ts";
import { flagFromName, type OptionSpec, type OptionSpecs, type OptionValues } from "./option-spec.ts";
import { parseValue } from "./parse-value.ts";

export type ParseOutcome<S extends OptionSpecs> =
  | { readonly kind: "values"; readonly values: OptionValues<S> }
  | { readonly kind: "help"; readonly text: string }
  | { readonly kind: "invalid"; readonly message: string };

export interface Options<S extends OptionSpecs> {
  readonly name: string;
  readonly helpText: string;
  /** Pure: `argv` without the interpreter and the script. */
  parse(argv: readonly string[], env: Readonly<Record<string, string | undefined>>): ParseOutcome<S>;
}

/**
 * Describes the options of one program. `--name value`, `--name=value`, `--flag`, `--no-flag` and `--help` are understood, and bare
 * values for the options that are `positional`.
 */
export function defineOptions<const S extends OptionSpecs>(name: string, summary: string, specs: S): Options<S> {
  const text = helpText(name, summary, specs);
  return { name, helpText: text, parse: (argv, env) => parse(specs, text, argv, env) };
}

function parse<S extends OptionSpecs>(
  specs: S,
  help: string,
  argv: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
): ParseOutcome<S> {
  const nameByFlag = new Map(Object.keys(specs).map((name) => [flagFromName(name), name]));
  const texts = new Map<string, { readonly label: string; readonly text: string }>();
  if (argv.includes("--help") || argv.includes("-h")) return { kind: "help", text: help };

  for (let index = 0; index < argv.length; index++) {
    const argument = argv[index] ?? "";
    if (!argument.startsWith("--")) {
      const open = Object.keys(specs).find((name) => specs[name]?.positional === true && !texts.has(name));
      if (open !== undefined) {
        texts.set(open, { label: flagFromName(open), text: argument });
        continue;
      }
      return {
        kind: "invalid",
        message: `unexpected argument ${JSON.stringify(argument)}; every option starts with --`,
      };
    }
    const equals = argument.indexOf("=");
    const flag = equals < 0 ? argument : argument.slice(0, equals);
    const negated = flag.startsWith("--no-") ? nameByFlag.get(`--${flag.slice(5)}`) : undefined;
    const name = nameByFlag.get(flag) ?? negated;
    const spec = name === undefined ? undefined : specs[name];
    if (name === undefined || spec === undefined || (!nameByFlag.has(flag) && spec.type !== "boolean")) {
      return { kind: "invalid", message: unknownFlag(flag, [...nameByFlag.keys()]) };
    }
    if (texts.has(name)) return { kind: "invalid", message: `${flag} is given twice` };
    if (!nameByFlag.has(flag)) {
      if (equals >= 0) return { kind: "invalid", message: `${flag} takes no value` };
      texts.set(name, { label: flag, text: "false" });
    } else if (equals >= 0) {
      texts.set(name, { label: flag, text: argument.slice(equals + 1) });
    } else if (spec.type === "boolean") {
      texts.set(name, { label: flag, text: "true" });
    } else {
      const value = argv[++index];
      if (value === undefined || value.startsWith("--")) {
        return { kind: "invalid", message: `${flag} needs a value; see --help` };
      }
      texts.set(name, { label: flag, text: value });
    }
  }
  return values(specs, texts, env);
}

function values<S extends OptionSpecs>(
  specs: S,
  texts: ReadonlyMap<string, { readonly label: string; readonly text: string }>,
  env: Readonly<Record<string, string | undefined>>,
): ParseOutcome<S> {
  const found: Record<string, string | number | boolean | undefined> = {};
  for (const [name, spec] of Object.entries(specs) as [string, OptionSpec][]) {
    const fromEnv = env[spec.env];
    // An empty variable counts as absent: charts and compose files write them that way.
    const given =
      texts.get(name) ?? (fromEnv === undefined || fromEnv === "" ? undefined : { label: spec.env, text: fromEnv });
    const source =
      given ?? (spec.default === undefined ? undefined : { label: flagFromName(name), text: `${spec.default}` });
    if (source === undefined) {
      if (spec.required === true) {
        return { kind: "invalid", message: `${flagFromName(name)} is required (or set ${spec.env})` };
      }
      found[name] = spec.type === "boolean" ? false : undefined;
      continue;
    }
    const outcome = parseValue(source.label, source.text, spec);
    if (outcome.kind === "wrong") return { kind: "invalid", message: outcome.message };
    found[name] = outcome.value;
  }
  return { kind: "values", values: found as OptionValues<S> };
}

function unknownFlag(flag: string, known: readonly string[]): string {
  const nearest = nearestName(flag, [...known, "--help"]);
  return nearest === undefined
    ? `unknown option ${flag}; see --help`
    : `unknown option ${flag}; did you mean ${nearest}?`;
}
