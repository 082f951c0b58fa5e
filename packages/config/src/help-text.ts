import { flagFromName, type OptionSpec, type OptionSpecs } from "./option-spec.ts";

const LINE_WIDTH = 100;
const HELP_COLUMN = 34;

/** The `--help` page: each option with its value, its meaning, its default and its environment variable. */
export function helpText(name: string, summary: string, specs: OptionSpecs): string {
  const lines = [`${name}: ${summary}`, "", `Usage: ${name}${positionals(specs)} [options]`, "", "Options:"];
  for (const [option, spec] of Object.entries(specs)) {
    const flag = `  ${flagFromName(option)}${placeholder(spec)}`;
    const wrapped = wrap(`${spec.help} ${notes(spec)}`, LINE_WIDTH - HELP_COLUMN);
    if (flag.length >= HELP_COLUMN - 1) lines.push(flag);
    else lines.push(flag.padEnd(HELP_COLUMN) + (wrapped.shift() ?? ""));
    for (const line of wrapped) lines.push(" ".repeat(HELP_COLUMN) + line);
  }
  lines.push(`${"  --help".padEnd(HELP_COLUMN)}Show this page.`, "");
  lines.push("A flag wins over its environment variable, which wins over the default.");
  return `${lines.join("\n")}\n`;
}

function positionals(specs: OptionSpecs): string {
  return Object.entries(specs)
    .filter(([, spec]) => spec.positional === true)
    .map(([name, { required }]) => {
      const word = flagFromName(name).slice(2).toUpperCase();
      return required === true ? ` ${word}` : ` [${word}]`;
    })
    .join("");
}

function placeholder(spec: OptionSpec): string {
  switch (spec.type) {
    case "boolean":
      return "";
    case "integer":
      return " N";
    case "bytes":
      return " SIZE";
    case "address":
      return " HOST:PORT";
    case "string":
      return spec.choices === undefined ? " TEXT" : ` ${spec.choices.join("|")}`;
  }
}

function notes(spec: OptionSpec): string {
  const notes = [`env ${spec.env}`];
  if (spec.required === true) notes.unshift("required");
  else if (spec.default !== undefined && spec.default !== "") notes.unshift(`default ${spec.default}`);
  return `(${notes.join("; ")})`;
}

function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    if (line !== "" && line.length + 1 + word.length > width) {
      lines.push(line);
      line = word;
    } else {
      line = line === "" ? word : `${line} ${word}`;
    }
  }
  if (line !== "") lines.push(line);
  return lines;
}
