import { expect, expectTypeOf, test } from "vitest";
import { defineOptions } from "./options.ts";

const options = defineOptions("worker", "runs a model", {
  id: { type: "string", env: "KVASIR_ID", required: true, help: "Unique name." },
  role: {
    type: "string",
    env: "KVASIR_ROLE",
    choices: ["prefill", "decode"],
    default: "decode",
    help: "What it does.",
  },
  kvBytes: { type: "bytes", env: "KVASIR_KV_BYTES", default: "64MiB", min: 1024, help: "KV pool." },
  threads: { type: "integer", env: "KVASIR_THREADS", min: 1, max: 512, help: "Threads." },
  listen: { type: "address", env: "KVASIR_LISTEN", default: "127.0.0.1:0", help: "gRPC." },
  parentWatch: { type: "boolean", env: "KVASIR_PARENT_WATCH", help: "Exit at the end of stdin." },
});

function values(argv: string[], env: Record<string, string> = {}) {
  const outcome = options.parse(argv, env);
  if (outcome.kind !== "values") throw new Error(JSON.stringify(outcome));
  return outcome.values;
}

function message(argv: string[], env: Record<string, string> = {}): string {
  const outcome = options.parse(argv, env);
  return outcome.kind === "invalid" ? outcome.message : `not invalid: ${outcome.kind}`;
}

test("values are typed, and defaults fill what is not given", () => {
  const parsed = values(["--id", "d0"]);
  expect(parsed).toEqual({
    id: "d0",
    role: "decode",
    kvBytes: 67_108_864,
    threads: undefined,
    listen: "127.0.0.1:0",
    parentWatch: false,
  });
  expectTypeOf(parsed.role).toEqualTypeOf<"prefill" | "decode">();
  expectTypeOf(parsed.threads).toEqualTypeOf<number | undefined>();
  expectTypeOf(parsed.kvBytes).toEqualTypeOf<number>();
});

test("a flag wins over the environment, which wins over the default", () => {
  expect(values(["--id=a"], { KVASIR_ROLE: "prefill" }).role).toBe("prefill");
  expect(values(["--id=a", "--role=decode"], { KVASIR_ROLE: "prefill" }).role).toBe("decode");
  expect(values(["--id=a"], { KVASIR_ROLE: "" }).role).toBe("decode");
  expect(values([], { KVASIR_ID: "from-env" }).id).toBe("from-env");
});

test("booleans need no value and can be negated", () => {
  expect(values(["--id=a", "--parent-watch"]).parentWatch).toBe(true);
  expect(values(["--id=a", "--no-parent-watch"], { KVASIR_PARENT_WATCH: "1" }).parentWatch).toBe(false);
});

test.each([
  ["4096", 4096],
  ["4KiB", 4096],
  ["2GB", 2e9],
  ["1.5 MiB", 1_572_864],
])("%s is a size", (text, bytes) => {
  expect(values(["--id=a", "--kv-bytes", text]).kvBytes).toBe(bytes);
});

test.each([
  [["--id=a", "--treads", "4"], "unknown option --treads; did you mean --threads?"],
  [["--id=a", "--zzzzzzzzzz"], "unknown option --zzzzzzzzzz; see --help"],
  [["--id=a", "--no-threads"], "unknown option --no-threads; did you mean --threads?"],
  [["--id=a", "--threads", "four"], '--threads is "four"; use an integer from 1 to 512'],
  [["--id=a", "--threads=0"], '--threads is "0"; use an integer from 1 to 512'],
  [["--id=a", "--kv-bytes=12 parsecs"], '--kv-bytes is "12 parsecs"; use a size like 512MiB or 2GiB of at least 1024'],
  [["--id=a", "--kv-bytes=512"], '--kv-bytes is "512"; use a size of at least 1024'],
  [["--id=a", "--listen=8000"], '--listen is "8000"; use host:port, e.g. 127.0.0.1:0'],
  [["--id=a", "--listen=h:70000"], '--listen is "h:70000"; use host:port, e.g. 127.0.0.1:0'],
  [["--id=a", "--role=both"], '--role is "both"; use prefill or decode'],
  [["--id=a", "--id=b"], "--id is given twice"],
  [["--id"], "--id needs a value; see --help"],
  [[], "--id is required (or set KVASIR_ID)"],
  [["stray"], 'unexpected argument "stray"; every option starts with --'],
] as [string[], string][])("%j is refused in one line", (argv, expected) => {
  expect(message(argv)).toBe(expected);
});

test("a wrong environment variable is named as such", () => {
  expect(message(["--id=a"], { KVASIR_THREADS: "-1" })).toBe('KVASIR_THREADS is "-1"; use an integer from 1 to 512');
});

test("help lists each option with its default and variable", () => {
  const outcome = options.parse(["--help", "--nonsense"], {});
  expect(outcome.kind === "help" && outcome.text).toBe(`worker: runs a model

Usage: worker [options]

Options:
  --id TEXT                       Unique name. (required; env KVASIR_ID)
  --role prefill|decode           What it does. (default decode; env KVASIR_ROLE)
  --kv-bytes SIZE                 KV pool. (default 64MiB; env KVASIR_KV_BYTES)
  --threads N                     Threads. (env KVASIR_THREADS)
  --listen HOST:PORT              gRPC. (default 127.0.0.1:0; env KVASIR_LISTEN)
  --parent-watch                  Exit at the end of stdin. (env KVASIR_PARENT_WATCH)
  --help                          Show this page.

A flag wins over its environment variable, which wins over the default.
`);
});

test("positional options take bare values in their order, or their flags", () => {
  const copy = defineOptions("copy", "copies", {
    from: { type: "string", env: "FROM", positional: true, required: true, help: "Source." },
    to: { type: "string", env: "TO", positional: true, help: "Target." },
  });
  expect(copy.parse(["a", "b"], {})).toEqual({ kind: "values", values: { from: "a", to: "b" } });
  expect(copy.parse(["--from", "a", "b"], {})).toEqual({ kind: "values", values: { from: "a", to: "b" } });
  expect(copy.parse(["a", "b", "c"], {}).kind).toBe("invalid");
  expect(copy.parse(["a", "--from", "b"], {})).toEqual({ kind: "invalid", message: "--from is given twice" });
  expect(copy.helpText).toContain("Usage: copy FROM [TO] [options]");
});
