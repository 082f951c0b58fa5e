import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";

const index = new URL("./index.ts", import.meta.url).href;

async function program(main: string): Promise<string> {
  const file = join(await mkdtemp(join(tmpdir(), "kvasir-config-")), "main.ts");
  writeFileSync(
    file,
    `import { defineOptions, runMain, waitForEnd } from ${JSON.stringify(index)};
const options = defineOptions("thing", "does", { n: { type: "integer", env: "N", default: 1, help: "N." } });
await runMain(options, async (values) => { ${main} });`,
  );
  return file;
}

const run = (file: string, ...argv: string[]) =>
  spawnSync(process.execPath, [file, ...argv], { encoding: "utf8", input: "", timeout: 15_000 });

test("wrong options are one line and exit code 2; help is exit code 0", async () => {
  const file = await program("console.log(values.n)");
  expect(run(file, "--m=1")).toMatchObject({ status: 2, stderr: "thing: unknown option --m; did you mean --n?\n" });
  expect(run(file, "--help").status).toBe(0);
  expect(run(file, "--n=7")).toMatchObject({ status: 0, stdout: "7\n" });
});

test("a start that fails is one line and exit code 1, even with timers alive", async () => {
  const file = await program(`setInterval(() => {}, 1000); throw new Error("cannot bind\\nport 1")`);
  expect(run(file)).toMatchObject({ status: 1, stderr: "thing: cannot bind port 1\n" });
});

test("with parent watch, the end of stdin ends the wait", async () => {
  const file = await program("console.log(await waitForEnd(true))");
  expect(run(file)).toMatchObject({ status: 0, stdout: "parent gone\n" });
});
